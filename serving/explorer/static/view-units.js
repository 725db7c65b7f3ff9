// Units: a slider for each active unit, those of most KL first, each with a strip of what it does.

import {Latest} from "./rpc.js";
import {make, update} from "./show.js";

const SPAN = 3;  // in standard deviations of the prior
const STOPS = [-3, -2, -1, 0, 1, 2, 3];

export const units = {
  title: "Units",
  suits: (model) => model.hasUnits,
  mount: (element, app) => new UnitsView(element, app),
};

class UnitsView {
  constructor(element, app) {
    this.app = app;
    this.visible = new Map();  // unit -> its line, while it can be seen
    this.latest = new Latest();
    const {active, collapsed} = app.model.units();
    const known = app.model.map?.unitKl.length === app.model.size;
    this.lines = new Map(active.map((unit) => [unit, this.#line(unit, known)]));
    this.observer = new IntersectionObserver((entries) => {
      for (const {target, isIntersecting} of entries) {
        const unit = Number(target.dataset.unit);
        if (isIntersecting) this.visible.set(unit, this.lines.get(unit)); else this.visible.delete(unit);
      }
      this.#strips();
    });
    element.append(
      make("p", {className: "hint", textContent: known
        ? `${active.length} active units, those of most KL first. Each strip shows the current point with one unit at ${STOPS.join(", ")}.`
        : `${active.length} units. Their KL is not known: this model keeps no map of training rows.`}),
      ...[...this.lines.values()].map((line) => line.element));
    if (collapsed.length) element.append(make("details", {},
      make("summary", {textContent: `${collapsed.length} collapsed units`}),
      make("p", {className: "hint", textContent: `The decoder ignores them: ${collapsed.map((unit) => `z[${unit}]`).join(", ")}.`})));
    for (const line of this.lines.values()) this.observer.observe(line.element);
  }

  unmount() { this.observer.disconnect(); }

  onMove() {
    for (const [unit, line] of this.lines) if (document.activeElement !== line.slider) line.slider.value = this.app.z[unit];
    this.#strips();
  }

  #line(unit, known) {
    const {app} = this;
    const note = known ? `KL ${app.model.map.unitKl[unit].toFixed(2)} nats` : "";
    const slider = make("input", {type: "range", min: -SPAN, max: SPAN, step: 0.05, value: app.z[unit], "aria-label": `unit ${unit}`, oninput: () => {
      const z = Float32Array.from(app.z);
      z[unit] = slider.value;
      app.move(z);
    }});
    const holders = STOPS.map((stop) => make("button", {type: "button", "aria-label": `unit ${unit} at ${stop}`, title: String(stop), onclick: () => {
      const z = Float32Array.from(app.z);
      z[unit] = stop;
      app.move(z);
    }}));
    const strip = make("div", {className: `strip ${app.model.kind === "image" ? "" : "words"}`}, ...holders);
    const element = make("div", {className: "unit"}, make("div", {}, make("b", {textContent: `z[${unit}]`}), make("div", {className: "hint", textContent: note})), slider, strip);
    element.dataset.unit = unit;
    return {element, slider, holders};
  }

  /** Decode the strips that can be seen, all in one request: the newest only. */
  #strips() {
    this.latest.run(async () => {
      const shown = [...this.visible];
      if (!shown.length) return;
      const base = this.app.z;
      const latents = shown.flatMap(([unit]) => STOPS.map((stop) => { const z = Float32Array.from(base); z[unit] = stop; return z; }));
      const rows = await this.app.model.decode(latents);
      shown.forEach(([unit, line], i) => line.holders.forEach((holder, j) =>
        update(holder, rows[i * STOPS.length + j], this.app.model, `unit ${unit} at ${STOPS[j]}`)));
    });
  }
}
