/** A frame in tiles, so that what a visitor does comes in between: how it is divided, and how it looks until it is whole. */
import { box } from "./view.js";

const TILE_MS = 500; // of a tile: what is begun cannot be interrupted, and a gesture waits
const TILE_PX = 64; // its least side

/** Pixels that are computed for as many, in whole steps of the grid and with a halo. */
export function computed({ step, halo }, width, height) {
  const along = (side) => Math.ceil(side / step) * step + 2 * halo;
  return along(width) * along(height);
}

/**
 * A region in tiles of at most TILE_MS, where a computed pixel takes `time`: their sides {wide, high}, and {x, y, width, height} of each
 * from the middle outwards.
 */
export function tilesOf(model, { width, height }, time) {
  const least = Math.max(TILE_PX, model.step);
  const side = (length, count) => Math.ceil(length / count / model.step) * model.step;
  let [columns, rows] = [1, 1];
  let [wide, high] = [width, height];
  while (time * computed(model, wide, high) > TILE_MS && Math.max(wide, high) > least) {
    if (wide > high) columns++;
    else rows++;
    [wide, high] = [side(width, columns), side(height, rows)];
  }
  const tiles = [];
  for (let y = 0; y < height; y += high) {
    for (let x = 0; x < width; x += wide) {
      tiles.push({ x, y, width: Math.min(wide, width - x), height: Math.min(high, height - y) });
    }
  }
  const far = (tile) => Math.hypot(tile.x + (tile.width - width) / 2, tile.y + (tile.height - height) / 2);
  return { wide, high, tiles: tiles.sort((one, other) => far(one) - far(other)) };
}

/** The tiles of a frame that are there over what was shown before, fading out towards those that are missing: no edges show. */
export function compose({ image, sharp, under, region, wide, high, missing }) {
  const corners = new OffscreenCanvas(Math.ceil(region.width / wide) + 1, Math.ceil(region.height / high) + 1);
  const mask = corners.getContext("2d");
  mask.fillRect(0, 0, corners.width, corners.height);
  for (const tile of missing) mask.clearRect(tile.x / wide, tile.y / high, 2, 2); // its four corners
  const to = image.getContext("2d");
  to.globalCompositeOperation = "copy";
  to.imageSmoothingQuality = "low"; // linear from corner to corner
  to.drawImage(corners, -wide / 2, -high / 2, corners.width * wide, corners.height * high);
  to.globalCompositeOperation = "source-in";
  to.drawImage(sharp, 0, 0);
  to.globalCompositeOperation = "destination-over";
  paint(to, under, region);
}

/** The part of a frame, 0 to 1, that is there. */
export function done({ region, missing }) {
  return 1 - missing.reduce((sum, { width, height }) => sum + width * height, 0) / (region.width * region.height);
}

/** Paint a frame {image, region} where it belongs in a picture whose corner and pixels are those of `place`: {left, top, pitch}. */
export function paint(to, { image, region }, place) {
  to.imageSmoothingQuality = "high";
  to.drawImage(image, ...box({ rect: region, pitch: region.pitch, bitmap: image }, { rect: place, pitch: place.pitch }));
}
