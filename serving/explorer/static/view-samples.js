// Samples: a wall of them. Row i depends on the seed and i only.

import {Latest} from "./rpc.js";
import {gallery, make} from "./show.js";

export const samples = {
  title: "Samples",
  suits: (model) => !model.lacks("sample"),
  mount: (element, app) => new SamplesView(element, app),
};

class SamplesView {
  constructor(element, app) {
    this.app = app;
    this.latest = new Latest();
    const {state, model} = app;
    const field = (key, properties) => {
      const input = make("input", {type: "number", value: state[key], ...properties, onchange: () => { if (input.reportValidity()) { app.set({[key]: input.value}); this.load(); } }});
      return input;
    };
    this.seed = make("input", {type: "text", inputMode: "numeric", pattern: "[0-9]{1,20}", size: 12, value: state.seed, onchange: () => {
      if (this.seed.reportValidity()) { app.set({seed: this.seed.value}); this.load(); }
    }});
    const said = make("output", {textContent: state.temperature});
    const temperature = make("input", {type: "range", min: 0, max: 2, step: 0.05, value: state.temperature, oninput: () => {
      said.textContent = temperature.value;
      app.set({temperature: temperature.value});
      this.load();
    }});
    this.wall = make("div");
    element.append(
      make("div", {className: "bar"}, make("label", {}, "Seed ", this.seed),
        make("button", {type: "button", textContent: "Another seed", onclick: () => { this.seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]); this.seed.dispatchEvent(new Event("change")); }}),
        make("label", {}, "Rows ", field("count", {min: 1, max: Math.min(256, model.maxRows)})),
        make("label", {}, "Temperature ", temperature, said)),
      this.wall,
      make("p", {className: "hint", textContent: "Click one to make it the current point. The same seed gives the same samples on every server."}));
    this.load();
  }

  load() {
    return this.latest.run(async () => {
      const {app} = this;
      const {seed, count, temperature} = app.state;
      const {rows, z} = await app.model.sample(seed, 0, Number(count), Number(temperature));
      const name = (i) => `${seed}:${i}${Number(temperature) === 1 ? "" : `:${temperature}`}`;
      this.wall.replaceChildren(gallery("wall", rows, app.model, (i) => `row ${i} of seed ${seed}`, (i) => app.move(z[i], name(i))));
    });
  }
}
