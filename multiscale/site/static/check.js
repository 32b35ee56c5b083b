/** Says what a browser cannot do before any module is asked for, which from a file it does not even begin to load. */
const problem =
  location.protocol === "file:"
    ? "browsers run no model from a file; serve the folder, such as by python -m http.server"
    : typeof WebAssembly !== "object" || typeof DecompressionStream !== "function"
      ? "it needs WebAssembly and DecompressionStream; use a newer browser"
      : null;
if (problem) document.getElementById("message").textContent = `This page cannot work here: ${problem}.`;
