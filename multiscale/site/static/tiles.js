/** One world as Deep Zoom tiles, in OpenSeadragon; nothing is fetched but pictures, so that it works from a file too. */
const { world, licence, side, tile } = window.facts;
document.getElementById("about").textContent = `World ${world} of a generative model.${licence ? ` Under: ${licence}.` : ""}`;

window.viewer = OpenSeadragon({
  id: "view",
  prefixUrl: "./viewer/",
  drawer: "canvas", // pictures of a file are none of WebGL's
  tileSources: {
    Image: {
      xmlns: "http://schemas.microsoft.com/deepzoom/2008",
      Url: "./world_files/",
      Format: "png",
      Overlap: "0",
      TileSize: String(tile),
      Size: { Width: String(side), Height: String(side) },
    },
  },
  showNavigator: true,
  navigatorAutoFade: false,
  autoHideControls: false,
  maxZoomPixelRatio: 4,
});
