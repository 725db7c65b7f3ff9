// The map: training rows in two coordinates; under the pointer, what the model decodes there.

import {color, extent, make, save} from "./show.js";

const PALETTE = ["#3b7dd8", "#d8622f", "#2e9e6b", "#b8468c", "#8a6d1f", "#6c58c9", "#1f9aa8", "#c23b3b", "#6b8e23", "#77808f"];
const LEGEND = 30;  // labels
const STEP = 0.04;  // of the map's width, for each press of an arrow key

export const map = {
  title: "Map",
  suits: () => true,
  mount: (element, app) => new MapView(element, app),
};

/** Two coordinates of latents: principal components or two units. */
function makeAxes(name, model) {
  if (model.map && name === "components") {
    const {center, components: [p, q], positions} = model.map;
    const dot = (z, component) => component.reduce((sum, number, i) => sum + number * (z[i] - center[i]), 0);
    return {
      labels: ["principal component 1", "principal component 2"],
      positions,
      place: (z) => [dot(z, p), dot(z, q)],
      // What lies across the plane is that of the center.
      at: (u, v) => Float32Array.from(center, (number, i) => number + u * p[i] + v * q[i]),
    };
  }
  const {active, collapsed} = model.units();
  const [i, j = i] = [...active, ...collapsed];
  return {
    labels: [`unit ${i}`, `unit ${j}`],
    positions: model.map?.complete ? model.map.means.map((mean) => [mean[i], mean[j]]) : [],
    place: (z) => [z[i], z[j]],
    at: (u, v, z) => { const moved = Float32Array.from(z); moved[i] = u; moved[j] = v; return moved; },
  };
}

class MapView {
  constructor(element, app) {
    this.app = app;
    const {model, state} = app;
    const chosen = model.map ? state.axes || "components" : "units";
    this.axes = makeAxes(chosen, model);
    this.canvas = make("canvas", {tabIndex: 0, role: "application", "aria-label": "Map of the latent space. Arrow keys move the current point."});
    const option = (value, text, now) => make("option", {value, textContent: text, selected: value === now});
    const axes = make("select", {onchange: () => app.go({axes: axes.value})},
      ...(model.map ? [option("components", "principal components", chosen)] : []), option("units", model.map ? "the two units of most KL" : "the first two units", chosen));
    const choices = [["label", "label", model.map?.labels.length], ["error", "reconstruction error", model.map?.error.length], ["kl", "KL", model.map?.kl.length]].filter(([, , has]) => has);
    this.color = (choices.find(([value]) => value === state.color) ?? choices[0])?.[0];
    const colors = make("select", {onchange: () => { this.color = colors.value; app.set({color: this.color}); this.colors = this.#colors(); this.draw(); }},
      ...choices.map(([value, text]) => option(value, text, this.color)));
    this.legend = make("div", {className: "legend"});
    element.append(
      make("div", {className: "bar"}, make("label", {}, "Axes ", axes), colors.children.length ? make("label", {}, "Color by ", colors) : null,
        make("button", {type: "button", textContent: "Save map as PNG", onclick: () => save(this.canvas.toDataURL("image/png"), `${model.name}-map.png`)})),
      make("div", {id: "map"}, this.canvas), this.legend,
      make("p", {className: "hint", textContent: model.map
        ? `${model.map.count.toLocaleString("en")} training rows. The model decodes the point under the pointer. Click keeps it.`
        : `There is no map of training rows (${model.mapRefusal}). The square shows -4 to 4 of both coordinates.`}));
    this.points = this.axes.positions;
    this.colors = this.#colors();
    this.#fit();
    this.held = false;
    this.canvas.addEventListener("pointermove", (event) => { if (!this.held || event.buttons) this.#point(event); });
    this.canvas.addEventListener("pointerdown", (event) => { this.held = true; this.#point(event); });
    this.canvas.addEventListener("pointerleave", () => { this.held = true; });
    this.canvas.addEventListener("pointerenter", (event) => { this.held = event.pointerType === "touch"; });
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.canvas);
  }

  unmount() { this.resize.disconnect(); }
  onMove() { this.draw(); }
  onPin() { this.draw(); }

  #fit() {
    const range = (values) => {
      const [low, high] = values.length ? extent(values) : [-4, 4];
      const margin = 0.06 * (high - low || 1);
      return [low - margin, high + margin];
    };
    this.u = range(this.points.map(([u]) => u));
    this.v = range(this.points.map(([, v]) => v));
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const u = this.u[0] + (event.clientX - box.left) / box.width * (this.u[1] - this.u[0]);
    const v = this.v[1] - (event.clientY - box.top) / box.height * (this.v[1] - this.v[0]);
    this.app.move(this.axes.at(u, v, this.app.z));
  }

  #key(event) {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
    if (!step) return;
    event.preventDefault();
    const [u, v] = this.axes.place(this.app.z);
    const scale = STEP * (event.shiftKey ? 4 : 1);
    this.app.move(this.axes.at(u + step[0] * scale * (this.u[1] - this.u[0]), v + step[1] * scale * (this.v[1] - this.v[0]), this.app.z));
  }

  /** The color of each row, and the legend. */
  #colors() {
    const {map} = this.app.model;
    if (!map) return [];
    const numbers = {error: map.error, kl: map.kl}[this.color];
    if (numbers?.length) {
      const sorted = Float32Array.from(numbers).sort();
      const [low, high] = [sorted[Math.floor(sorted.length * 0.02)], sorted[Math.floor(sorted.length * 0.98)]];
      this.legend.replaceChildren(make("span", {textContent: `blue ${low.toFixed(1)} nats, red ${high.toFixed(1)} nats`}));
      return numbers.map((value) => `hsl(${220 - 220 * Math.min(1, Math.max(0, (value - low) / (high - low || 1)))} 70% 50%)`);
    }
    const names = [...new Set(map.labels)].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
    const of = new Map(names.map((name, i) => [name, PALETTE[i % PALETTE.length]]));
    const more = names.length - LEGEND;
    this.legend.replaceChildren(...names.slice(0, LEGEND).map((name) => {
      const dot = make("i");
      dot.style.background = of.get(name);
      return make("span", {}, dot, name);
    }), more > 0 ? `and ${more} more` : "");
    return map.labels.map((name) => of.get(name));
  }

  draw() {
    const {canvas, app} = this;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const x = (u) => (u - this.u[0]) / (this.u[1] - this.u[0]) * canvas.clientWidth;
    const y = (v) => (this.v[1] - v) / (this.v[1] - this.v[0]) * canvas.clientHeight;
    const radius = Math.max(1.6, Math.min(4, canvas.clientWidth / 300));
    pen.globalAlpha = 0.65;
    this.points.forEach(([u, v], i) => {
      pen.fillStyle = this.colors[i] ?? PALETTE[0];
      pen.beginPath();
      pen.arc(x(u), y(v), radius, 0, 7);
      pen.fill();
    });
    pen.globalAlpha = 1;
    pen.fillStyle = color("--soft");
    pen.font = "13px system-ui, sans-serif";
    pen.fillText(`${this.axes.labels[0]} →`, 10, canvas.clientHeight - 10);
    pen.save();
    pen.translate(18, canvas.clientHeight - 28);
    pen.rotate(-Math.PI / 2);
    pen.fillText(`${this.axes.labels[1]} →`, 0, 0);
    pen.restore();
    const [u, v] = this.axes.place(app.z);
    pen.strokeStyle = color("--ink");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x(u), y(v), 8, 0, 7);
    pen.moveTo(x(u) - 13, y(v)); pen.lineTo(x(u) + 13, y(v));
    pen.moveTo(x(u), y(v) - 13); pen.lineTo(x(u), y(v) + 13);
    pen.stroke();
  }
}
