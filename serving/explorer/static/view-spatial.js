// Spatial latents: a map of each channel; a region of A's or B's latent is pasted into the current one.

import {resolve} from "./points.js";
import {heat, make} from "./show.js";

export const spatial = {
  title: "Channels",
  suits: (model) => model.isSpatial,
  mount: (element, app) => new SpatialView(element, app),
};

class SpatialView {
  constructor(element, app) {
    this.app = app;
    [this.channels, this.height, this.width] = app.model.z;
    const said = app.state.region.split(",").map(Number);
    this.region = said.length === 4 ? said : [0, 0, this.width, this.height];  // left, top, right, bottom
    this.#clamp();
    const paste = (end) => make("button", {type: "button", textContent: `Paste the region of ${end.toUpperCase()} here`, onclick: () => this.#paste(end)});
    this.said = make("span", {className: "hint", role: "status"});
    const number = (i, text, most) => make("label", {}, text, make("input", {type: "number", min: 0, max: most, value: this.region[i], onchange: (event) => {
      this.region[i] = Math.max(0, Math.round(Number(event.target.value)) || 0);
      this.#chosen();
    }}));
    this.fields = make("div", {className: "bar"}, number(0, "Left ", this.width), number(1, "Top ", this.height), number(2, "Right ", this.width), number(3, "Bottom ", this.height));
    this.grid = make("div", {className: "channels"});
    element.append(make("div", {className: "bar"}, paste("a"), paste("b"), this.said), this.fields, this.grid,
      make("p", {className: "hint", textContent: "Blue is negative, red is positive. Drag over a channel to choose the region of all channels."}));
    this.draw();
  }

  onMove() { this.draw(); }

  #clamp() {
    const most = [this.width, this.height, this.width, this.height];
    this.region = this.region.map((edge, i) => Math.min(edge, most[i]));
  }

  #chosen() {
    this.#clamp();
    this.app.set({region: this.region.join(",")});
    this.draw();
  }

  draw() {
    const area = this.width * this.height;
    const [left, top, right, bottom] = this.region;
    this.said.textContent = `Region: columns ${left} to ${right}, rows ${top} to ${bottom}.`;
    this.fields.querySelectorAll("input").forEach((input, i) => { input.value = this.region[i]; });
    this.grid.replaceChildren(...Array.from({length: this.channels}, (_, c) => {
      const element = heat(this.app.z.subarray(c * area, (c + 1) * area), this.width, this.height, `channel ${c}`, true);
      const pen = element.getContext("2d");
      pen.strokeStyle = "#000";
      pen.lineWidth = 0.4;
      pen.strokeRect(left + 0.2, top + 0.2, right - left - 0.4, bottom - top - 0.4);
      this.#selectable(element);
      return make("figure", {}, element, make("figcaption", {textContent: `channel ${c}`}));
    }));
  }

  #selectable(element) {
    const cell = (event) => {
      const box = element.getBoundingClientRect();
      const clamp = (value, most) => Math.min(most - 1, Math.max(0, Math.floor(value)));
      return [clamp((event.clientX - box.left) / box.width * this.width, this.width), clamp((event.clientY - box.top) / box.height * this.height, this.height)];
    };
    let start = null;
    element.addEventListener("pointerdown", (event) => { start = cell(event); element.setPointerCapture(event.pointerId); });
    element.addEventListener("pointerup", (event) => {
      if (!start) return;
      const end = cell(event);
      this.region = [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]) + 1, Math.max(start[1], end[1]) + 1];
      this.#chosen();
    });
  }

  async #paste(end) {
    const {app} = this;
    if (!app.state[end]) { this.said.textContent = `Pin ${end.toUpperCase()} first.`; return; }
    const from = await resolve(app.state[end], app.model);
    const z = Float32Array.from(app.z);
    const [left, top, right, bottom] = this.region;
    for (let c = 0; c < this.channels; c++) for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) {
      const at = (c * this.height + y) * this.width + x;
      z[at] = from[at];
    }
    app.move(z);
  }
}
