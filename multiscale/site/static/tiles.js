/** One world as Deep Zoom tiles, in OpenSeadragon. */
window.viewer = OpenSeadragon({
  id: "view",
  prefixUrl: "./viewer/",
  tileSources: "./world.dzi",
  showNavigator: true,
  maxZoomPixelRatio: 4,
});
