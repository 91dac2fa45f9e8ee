// One map on one brain: the inflated surface or a volume by NiiVue, sensors over time as a grid, bars where sites have no
// place.

import { ask, ints } from "./api.js";

const NEAR_MM = 6;
const LEFT = 44, TOP = 8, BELOW = 22; // around the grid, in pixels
const VIEWS = {
  surface: { behind: [0, 12], left: [270, 8], right: [90, 8], below: [0, -75] },
  volume: { behind: [0, 12], left: [270, 8], right: [90, 8], above: [0, 89] },
};
// red for more, blue for less, as in the report; a colour a third of the way
const MORE = { R: [253, 239, 178, 103], G: [219, 138, 24, 0], B: [199, 98, 43, 31], A: [200, 255, 255, 255], I: [0, 85, 170, 255] };
const LESS = { R: [209, 103, 33, 5], G: [229, 169, 102, 48], B: [240, 207, 172, 97], A: [200, 255, 255, 255], I: [0, 85, 170, 255] };
const LIT = { R: [255, 255], G: [214, 140], B: [0, 0], A: [255, 255], I: [0, 255] };

export class Cortex {
  constructor(canvas, views, hover, legend) {
    Object.assign(this, { canvas, views, hoverLine: hover, legend, spaces: new Map(), subject: null, values: null, label: "" });
    this.kind = null;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
    new ResizeObserver(() => (this.flat() ? this.values && this[this.kind]() : this.fit())).observe(canvas.parentElement);
  }

  async space(subject) {
    if (!this.spaces.has(subject)) {
      const space = await ask(`/api/spaces/${encodeURIComponent(subject)}`);
      space.index = ints(space.index);
      space.roisOf = new Array(space.sites).fill("");
      for (const [name, sites] of Object.entries(space.rois)) {
        space.rois[name] = ints(sites);
        for (const site of space.rois[name]) space.roisOf[site] += (space.roisOf[site] && ", ") + name;
      }
      this.spaces.set(subject, space);
    }
    return this.spaces.get(subject);
  }

  // values: one a site. limit: where colours end. lit: sites that are marked.
  async show(subject, values, { label = "response (z)", limit = null, lit = null } = {}) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const space = await this.space(subject);
    Object.assign(this, { subject, values, label, lit });
    this.limit = limit ?? span(values);
    const kind = { surface: "surface", volume: "volume", sensors: "grid" }[space.geometry] ?? "bars";
    if (kind !== this.kind) { this.kind = kind; this.becoming = this.become(kind); }
    await this.becoming;
    if (turn !== this.turn) return;
    if (kind === "surface") this.paintSurface(space);
    else if (kind === "volume") await this.paintVolume(space, turn);
    else this[kind]();
    this.drawLegend();
    this.canvas.dataset.shown = `${subject} ${label}`;
  }

  async become(kind) {
    const fresh = this.canvas.cloneNode();
    this.canvas.replaceWith(fresh);
    this.canvas = fresh;
    fresh.addEventListener("pointermove", (event) => this.pointed(event));
    this.views.replaceChildren();
    if (this.flat()) return;
    this.nv = new niivue.Niivue({ backColor: [0, 0, 0, 0], show3Dcrosshair: false, isOrientCube: false, dragAndDropEnabled: false,
      isColorbar: false, logLevel: "error", isResizeCanvas: true, crosshairWidth: 0 });
    this.nv.addColormap("more", MORE);
    this.nv.addColormap("less", LESS);
    this.nv.addColormap("lit", LIT);
    await this.nv.attachToCanvas(fresh);
    this.nv.setSliceType(this.nv.sliceTypeRender);
    if (kind === "surface") {
      await this.nv.loadMeshes(["left", "right"].map((side) => ({ url: `/api/mesh/${side}.mz3`, name: `${side}.mz3`, rgba255: [205, 205, 205, 255],
        layers: [{ url: `/api/depth/${side}.mz3`, name: `${side}.depth.mz3`, colormap: "gray", colormapInvert: true, cal_min: -1.2, cal_max: 1.6, opacity: 0.55 }] })));
    }
    for (const [name, angles] of Object.entries(VIEWS[kind])) {
      const button = document.createElement("button");
      button.textContent = name;
      button.onclick = () => this.nv.setRenderAzimuthElevation(...angles);
      this.views.append(button, " ");
    }
    this.nv.setRenderAzimuthElevation(...VIEWS[kind].behind);
    this.fit();
    this.recolour();
  }

  flat() { return this.kind === "bars" || this.kind === "grid"; } // drawn by hand, without WebGL

  // Both hemispheres side by side fill a wide stage, and stay inside of a narrow one.
  fit() {
    if (!this.nv || !this.nv.gl || this.flat()) return;
    const { clientWidth: wide, clientHeight: high } = this.canvas.parentElement;
    this.nv.setScale(this.kind === "surface" ? Math.min(1.55, 1.2 * Math.max(1, wide / high)) : 1.3);
  }

  // The background is that of the page.
  recolour() {
    if (!this.nv || this.flat()) return;
    const colour = getComputedStyle(this.canvas.closest("#stage")).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    this.nv.opts.backColor = [...colour, 1];
    this.nv.drawScene();
  }

  layer(values, colours) {
    return { opacity: 0.92, nFrame4D: 1, frame4D: 0, outlineBorder: 0, cal_minNeg: NaN, cal_maxNeg: NaN, colormapType: 0, global_min: -this.limit, global_max: this.limit,
      isTransparentBelowCalMin: true, isAdditiveBlend: false, colorbarVisible: false, showLegend: false, values, ...colours };
  }

  paintSurface(space) {
    for (const [which, mesh] of this.nv.meshes.entries()) {
      const first = which ? space.left_vertices : 0;
      const spread = (of) => { const all = new Float32Array(mesh.pts.length / 3).fill(NaN); space.index.forEach((vertex, site) => {
        if (vertex >= first && vertex < first + all.length) all[vertex - first] = of(site); }); return filled(mesh.tris, all); };
      const shown = spread((site) => this.values[site]);
      const layers = [this.layer(shown, { colormap: "more", colormapNegative: "less", useNegativeCmap: true, cal_min: this.limit * 0.08, cal_max: this.limit })];
      if (this.lit) layers.push(this.layer(spread((site) => (this.lit.has(site) ? 1 : 0)), { colormap: "lit", useNegativeCmap: false, cal_min: 0.5, cal_max: 1, opacity: 0.95 }));
      mesh.layers = [mesh.layers[0], ...layers];
      mesh.updateMesh(this.nv.gl);
    }
    this.nv.drawScene();
  }

  async paintVolume(space, turn) {
    const all = new Float32Array(space.shape.reduce((a, b) => a * b));
    const [nx, ny, nz] = space.shape;
    space.index.forEach((flat, site) => { // C order of the array, Fortran order of the file
      const z = flat % nz, y = Math.floor(flat / nz) % ny, x = Math.floor(flat / (nz * ny));
      all[x + nx * (y + ny * z)] = this.lit?.has(site) ? this.limit : Number.isFinite(this.values[site]) ? this.values[site] : 0;
    });
    const url = nifti(all, space.shape, space.affine);
    const volume = await niivue.NVImage.loadFromUrl({ url, name: "map.nii", colormap: "more",
      colormapNegative: "less", cal_min: this.limit * 0.08, cal_max: this.limit, cal_minNeg: -this.limit * 0.08, cal_maxNeg: -this.limit });
    URL.revokeObjectURL(url);
    if (turn !== this.turn) return;
    for (const old of [...this.nv.volumes]) this.nv.removeVolume(old);
    this.nv.addVolume(volume);
    this.nv.drawScene();
  }

  paper() {
    const { clientWidth: wide, clientHeight: high } = this.canvas.parentElement;
    const scale = devicePixelRatio, pen = this.canvas.getContext("2d");
    Object.assign(this.canvas, { width: wide * scale, height: high * scale });
    pen.scale(scale, scale);
    return { wide, high, pen };
  }

  // Sensors from top to bottom, time from left to right.
  grid() {
    const { wide, high, pen } = this.paper(), { names, times_sec: times, index } = this.spaces.get(this.subject);
    const cells = new ImageData(times.length, names.length);
    this.values.forEach((value, site) => {
      if (!Number.isFinite(value)) return;
      const colour = this.lit?.has(site) ? [255, 157, 0] : tint(value / this.limit);
      cells.data.set([...colour, 255], 4 * index[site]);
    });
    const small = Object.assign(document.createElement("canvas"), { width: times.length, height: names.length });
    small.getContext("2d").putImageData(cells, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, LEFT, TOP, wide - LEFT - 8, high - TOP - BELOW);
    pen.fillStyle = getComputedStyle(this.canvas).color;
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    const row = (high - TOP - BELOW) / names.length, every = Math.ceil(13 / row);
    names.forEach((name, at) => { if (at % every === 0) pen.fillText(name, LEFT - 4, TOP + (at + 0.5) * row + 4, LEFT - 6); });
    pen.textAlign = "center";
    const column = (wide - LEFT - 8) / times.length, step = Math.ceil(60 / column);
    times.forEach((time, at) => { if (at % step === 0) pen.fillText(`${Math.round(1000 * time)} ms`, LEFT + (at + 0.5) * column, high - 6); });
  }

  bars() {
    const { wide, high, pen } = this.paper();
    const step = (wide - 20) / this.values.length, middle = high / 2;
    this.values.forEach((value, site) => {
      if (!Number.isFinite(value)) return;
      pen.fillStyle = this.lit?.has(site) ? "#ff9d00" : value > 0 ? "#b2182b" : "#2166ac";
      const tall = Math.max(-1, Math.min(1, value / this.limit)) * (middle - 12);
      pen.fillRect(10 + site * step, Math.min(middle, middle - tall), Math.max(0.6, step - 1), Math.abs(tall));
    });
    pen.fillStyle = "#888";
    pen.fillRect(10, middle, wide - 20, 1);
  }

  drawLegend() {
    const bar = document.createElement("canvas");
    Object.assign(bar, { width: 256, height: 8 });
    const pen = bar.getContext("2d");
    for (let x = 0; x < 256; x++) {
      pen.fillStyle = `rgb(${tint((x - 127.5) / 127.5)})`;
      pen.fillRect(x, 0, 1, 8);
    }
    this.legend.replaceChildren((-this.limit).toFixed(2), bar, this.limit.toFixed(2), ` ${this.label}`);
  }

  pointed(event) {
    if (!this.values || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const site = this.siteAt(event.offsetX, event.offsetY);
      this.told(site);
    });
  }

  told(site) {
    const space = this.spaces.get(this.subject);
    this.site = site;
    const sensor = this.kind === "grid" && site !== null ? ` (${space.names[Math.floor(space.index[site] / space.times_sec.length)]}, ${
      Math.round(1000 * space.times_sec[space.index[site] % space.times_sec.length])} ms)` : "";
    this.hoverLine.textContent = site === null ? "\u00a0" : `site ${site}${sensor}${space.roisOf[site] ? `, ${space.roisOf[site]}` : ""}: ${
      Number.isFinite(this.values[site]) ? this.values[site].toFixed(2) : "not shown to the model"}`;
  }

  siteAt(x, y) {
    const space = this.spaces.get(this.subject);
    if (this.kind === "grid") {
      const { clientWidth: wide, clientHeight: high } = this.canvas, { names, times_sec: times, index } = space;
      const column = Math.floor((x - LEFT) / (wide - LEFT - 8) * times.length), row = Math.floor((y - TOP) / (high - TOP - BELOW) * names.length);
      const found = column >= 0 && row >= 0 && column < times.length && row < names.length ? index.indexOf(row * times.length + column) : -1;
      return found < 0 ? null : found;
    }
    if (this.kind === "bars") {
      const site = Math.floor((x - 10) / ((this.canvas.clientWidth - 20) / this.values.length));
      return site >= 0 && site < this.values.length ? site : null;
    }
    const nv = this.nv;
    nv.mousePos = [x * nv.uiData.dpr, y * nv.uiData.dpr];
    nv.scene.crosshairPos = [-9, -9, -9];
    nv.uiData.mouseDepthPicker = true;
    nv.drawScene(); // where the pointer is
    nv.drawScene(); // the picture again
    if (nv.scene.crosshairPos[0] < -8) return null;
    const [px, py, pz] = nv.frac2mm(nv.scene.crosshairPos);
    if (this.kind === "volume") return this.nearestVoxel(space, px, py, pz);
    let best = [NEAR_MM, null]; // between measured vertices, the nearest of them
    space.index.forEach((vertex, site) => {
      const which = vertex >= space.left_vertices ? 1 : 0, at = 3 * (vertex - which * space.left_vertices), points = nv.meshes[which].pts;
      const far = Math.hypot(points[at] - px, points[at + 1] - py, points[at + 2] - pz);
      if (far < best[0]) best = [far, site];
    });
    return best[1];
  }

  nearestVoxel(space, px, py, pz) {
    const [a, b, c] = space.affine, [, ny, nz] = space.shape;
    let best = [NEAR_MM, null];
    space.index.forEach((flat, site) => {
      const z = flat % nz, y = Math.floor(flat / nz) % ny, x = Math.floor(flat / (nz * ny));
      const far = Math.hypot(...[a, b, c].map((row, axis) => row[0] * x + row[1] * y + row[2] * z + row[3] - [px, py, pz][axis]));
      if (far < best[0]) best = [far, site];
    });
    return best[1];
  }
}

// The colour of a share of the limit, from -1 to 1.
function tint(share) {
  const map = share < 0 ? LESS : MORE, place = Math.min(1, Math.abs(share)) * 3, low = Math.min(2, Math.floor(place)), part = place - low;
  return ["R", "G", "B"].map((name) => Math.round(map[name][low] * (1 - part) + map[name][low + 1] * part));
}

// A vertex that was not measured is drawn with the mean of its neighbours if most of them were; 0 is not drawn.
function filled(triangles, values) {
  const sum = new Float32Array(values.length), known = new Uint8Array(values.length), all = new Uint8Array(values.length);
  for (let at = 0; at < triangles.length; at++) {
    const own = triangles[at], next = triangles[at % 3 === 2 ? at - 2 : at + 1]; // each inner edge once in either direction
    all[own] += 1;
    if (!Number.isNaN(values[next])) { sum[own] += values[next]; known[own] += 1; }
  }
  return values.map((value, at) => (Number.isNaN(value) ? (known[at] && 2 * known[at] >= all[at] ? sum[at] / known[at] : 0) : value));
}

// The 99th percentile of what is there.
export function span(values) {
  const sizes = Float32Array.from(values).filter(Number.isFinite).map(Math.abs).sort();
  return sizes.length ? Math.max(1e-3, sizes[Math.floor(0.99 * (sizes.length - 1))]) : 1;
}

// A NIfTI-1 file of float32 as a blob's address.
function nifti(values, shape, affine) {
  const file = new ArrayBuffer(352 + values.byteLength), view = new DataView(file);
  view.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((size, at) => view.setInt16(40 + 2 * at, size, true));
  view.setInt16(70, 16, true);
  view.setInt16(72, 32, true);
  const sizes = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])));
  [1, ...sizes, 0, 0, 0, 0].forEach((size, at) => view.setFloat32(76 + 4 * at, size, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, 1, true);
  view.setInt16(254, 1, true);
  affine.forEach((row, at) => row.forEach((number, place) => view.setFloat32(280 + 16 * at + 4 * place, number, true)));
  [110, 43, 49, 0].forEach((letter, at) => view.setUint8(344 + at, letter));
  new Float32Array(file, 352).set(values);
  return URL.createObjectURL(new Blob([file]));
}
