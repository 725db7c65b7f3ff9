// Paths: from the pinned point A to B, along the great circle or the straight line.

import {nameOf, resolve} from "./points.js";
import {Latest} from "./rpc.js";
import {gallery, make} from "./show.js";

const FRAME_MS = 120;

export const paths = {
  title: "Paths",
  suits: () => true,
  mount: (element, app) => new PathsView(element, app),
};

class PathsView {
  constructor(element, app) {
    this.app = app;
    this.latest = new Latest();
    this.frames = [];
    this.timer = 0;
    const {state} = app;
    const toggle = (path, text) => make("button", {type: "button", textContent: text, "aria-pressed": String(state.path === path), onclick: () => app.go({path})});
    const steps = make("input", {type: "number", min: 2, max: 64, value: state.steps, onchange: () => {
      app.set({steps: String(Math.min(64, Math.max(2, Math.round(Number(steps.value)) || 9)))});
      steps.value = app.state.steps;
      this.load();
    }});
    this.play = make("button", {type: "button", textContent: "Play", "aria-pressed": "false", onclick: () => this.#toggle()});
    this.slider = make("input", {type: "range", min: 0, max: 0, value: 0, "aria-label": "place on the path", oninput: () => this.#show(Number(this.slider.value))});
    this.strip = make("div");
    element.append(
      make("div", {className: "bar"}, toggle("SLERP", "Great circle (slerp)"), toggle("LERP", "Straight line (lerp)"), make("label", {}, "Steps ", steps),
        make("button", {type: "button", textContent: "Swap A and B", onclick: () => app.go({a: app.state.b, b: app.state.a})}), this.play, this.slider),
      this.strip,
      make("p", {className: "hint", textContent: "Pin A and B at the current point: the buttons beside it, or the keys a and b. Until then the path goes between two samples."}));
    this.load();
  }

  unmount() { clearInterval(this.timer); }
  onPin() { this.load(); }

  load() {
    return this.latest.run(async () => {
      const {app} = this;
      let [a, b] = [];
      try {
        [a, b] = await Promise.all([resolve(app.state.a || `${app.state.seed}:1`, app.model), resolve(app.state.b || `${app.state.seed}:2`, app.model)]);
      } catch (error) { app.notice(error.message); return; }
      const {rows, z} = await app.model.interpolate(a, b, Number(app.state.steps), app.state.path);
      this.frames = z;
      this.slider.max = z.length - 1;
      this.strip.replaceChildren(gallery("strip", rows, app.model, (i) => `step ${i + 1} of ${z.length}`, (i) => this.#show(i)));
    });
  }

  #show(i) {
    if (!this.frames[i]) return;
    this.slider.value = i;
    [...this.strip.querySelectorAll("button")].forEach((button, j) => button.classList.toggle("on", i === j));
    this.app.move(this.frames[i], nameOf(this.frames[i]));
  }

  #toggle() {
    const playing = this.play.getAttribute("aria-pressed") === "false";
    this.play.setAttribute("aria-pressed", String(playing));
    this.play.textContent = playing ? "Stop" : "Play";
    clearInterval(this.timer);
    let at = Number(this.slider.value), step = 1;
    if (playing) this.timer = setInterval(() => {
      if (at + step < 0 || at + step >= this.frames.length) step = -step;
      at += step;
      this.#show(at);
    }, FRAME_MS);
  }
}
