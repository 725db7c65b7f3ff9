// A client in Node, as one would write it from the .proto file alone: node texts_from_node.cjs
// HOST:PORT PROTO. It prints its answers as one line of JSON.
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [target, proto] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: true, longs: String, enums: String });
const { VaeService } = grpc.loadPackageDefinition(definition).vae.v1;
const client = new VaeService(target, grpc.credentials.createInsecure());

const call = (method, request) =>
  new Promise((resolve) => {
    client[method](request, (error, response) => resolve(error ? { error: error.details } : response));
  });

const stream = (requests) =>
  new Promise((resolve, reject) => {
    const responses = [];
    const running = client.StreamReconstruct();
    running.on("data", (response) => responses.push(response));
    running.on("error", reject);
    running.on("end", () => resolve(responses));
    requests.forEach((request) => running.write(request));
    running.end();
  });

const rows = (texts) => ({ text: { texts } });
const seed = "18446744073709551615"; // 2^64 - 1: more than a number of JavaScript holds exactly

(async () => {
  const model = await call("GetModel", {});
  const sample = await call("Sample", { count: 9, seed, draw_x: true, format: "FORMAT_TEXT" });
  const x = rows(["bc", "é", ""]);
  const rebuilt = await call("Reconstruct", { x, format: "FORMAT_TEXT", include_scores: true });
  const score = await call("Score", { x, draws: 4, seed: "1" });
  const long = await call("Encode", { x: rows(["bc", "much too long"]) });
  const streamed = await stream([
    { x: rows(["bc", "much too long", "é"]), format: "FORMAT_TEXT" },
    { x: rows([""]), offset: "3" }, // the first message decides the format
  ]);
  const answers = {
    most_bytes: Number(model.x_shape[0].length) - 1,
    seed: sample.seed,
    sampled: sample.x.text.texts,
    rebuilt: rebuilt.x.text.texts,
    elbo: rebuilt.elbo,
    bound: score.log_likelihood,
    refused: long.error,
    streamed: streamed.map((response) => response.x.text.texts),
    bad: streamed[0].errors,
  };
  console.log(JSON.stringify(answers));
  client.close();
})();
