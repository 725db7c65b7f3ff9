// The current point for other programs: Python, grpcurl, a PNG file.

import {hasToken, toTensor} from "./rpc.js";
import {save} from "./show.js";

const encrypted = () => location.protocol === "https:";

function target() {
  const said = document.documentElement.dataset.grpc;
  return said.startsWith(":") ? location.hostname + said : said;
}

export function asPython({model, z}) {
  const numbers = Array.from(z, (number) => String(number)).join(", ");
  const imports = [hasToken() ? "import os\n\n" : "", encrypted() ? "import grpc\n" : "", "import numpy as np\n"].join("");
  const options = [encrypted() ? ", credentials=grpc.ssl_channel_credentials()" : "", hasToken() ? ', token=os.environ["TOKEN"]' : ""].join("");
  return `${imports}from latentd.client import Client

z = np.array([${numbers}], np.float32).reshape(1, ${model.z.join(", ")})
with Client("${target()}"${options}) as client:
    x = client.decode(z, model="${model.name}", version=${model.version})
`;
}

export function asGrpcurl({model, z}) {
  const request = {...model.named, z: toTensor([z], model.z), format: model.format};
  const flags = [encrypted() ? "" : "-plaintext ", hasToken() ? '-H "authorization: Bearer $TOKEN" ' : ""].join("");
  return `grpcurl ${flags}-d '${JSON.stringify(request)}' ${target()} vae.v1.VaeService/Decode`;
}

/** Save the picture that is shown. */
export function savePicture(holder, {model}) {
  const shown = holder.querySelector("img, canvas");
  if (shown) save(shown.tagName === "IMG" ? shown.src : shown.toDataURL("image/png"), `${model.name}.png`);
}
