/** One world as Deep Zoom tiles, in OpenSeadragon; nothing is fetched but pictures, so that it works from a file too. `returning` is of idle.js. */
const { world, licence, credit, side, tile, overlap } = window.facts;
const terms = (licence ? ` Under: ${licence}.` : "") + (credit ? ` Credit: ${credit}.` : "");
document.getElementById("about").textContent = `World ${world} of a generative model.${terms}`;

window.viewer = OpenSeadragon({
  id: "view",
  prefixUrl: "./viewer/",
  drawer: "canvas", // pictures of a file are none of WebGL's
  smoothTileEdgesMinZoom: Infinity, // clip() below does that
  tileSources: {
    hasTransparency: () => false, // what is below a tile need not be cleared, which leaves lines at its edges
    Image: {
      xmlns: "http://schemas.microsoft.com/deepzoom/2008",
      Url: "./world_files/",
      Format: "png",
      Overlap: String(overlap),
      TileSize: String(tile),
      Size: { Width: String(side), Height: String(side) },
    },
  },
  showNavigator: true,
  navigatorAutoFade: false,
  autoHideControls: false,
  maxZoomPixelRatio: 4,
});
window.viewer.addHandler("tile-drawing", clip);
named(window.viewer);
returning(() => window.viewer.viewport.goHome());

/** What OpenSeadragon leaves out for keyboards and screen readers: names, and buttons that can be reached. */
function named(viewer) {
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", `${document.title}: a picture to zoom and move in; arrow keys move, + and - zoom, 0 shows all`);
  for (const { element, tooltip } of viewer.buttonGroup.buttons) {
    for (const image of element.querySelectorAll("img")) image.alt = "";
    element.tabIndex = 0;
    element.setAttribute("role", "button");
    element.setAttribute("aria-label", tooltip);
  }
}

/**
 * Draws of a tile no more than itself and one pixel of the screen: there its pixels have all the neighbours that they are interpolated
 * from. Farther out, at the edge of its picture, they do not, and would cover those of its neighbour that do.
 */
function clip({ tile, tiledImage, context }) {
  const { source } = tiledImage;
  const count = source.getNumTiles(tile.level);
  const bounds = source.getTileBounds(tile.level, tile.x, tile.y, true);
  const sides = (at, last, start, size, pixels) => {
    const place = (pixel) => Math.floor((start + (size * pixel) / pixels) * OpenSeadragon.pixelDensityRatio);
    return [place(at ? overlap : 0), place(pixels - (at < last ? overlap : 0)) + 1];
  };
  const [left, right] = sides(tile.x, count.x - 1, tile.position.x, tile.size.x, bounds.width);
  const [top, bottom] = sides(tile.y, count.y - 1, tile.position.y, tile.size.y, bounds.height);
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
}
