// A gRPC client as Node.js users write it: a channel to `xds:///...` and a call, again and again.
//
// Every call prints one line of JSON: as whom it called, how it ended, and which backend answered. Every third call
// says that it is jason's. It ends when its standard input does.
"use strict";

const grpc = require("@grpc/grpc-js");
require("@grpc/grpc-js-xds").register();

const [target, method, pause] = process.argv.slice(2);
const client = new grpc.Client(target, grpc.credentials.createInsecure());
// Messages travel as bytes: what is tested is the way there.
const bytes = (message) => message;

function call(user) {
  return new Promise((resolve) => {
    const started = performance.now();
    const metadata = new grpc.Metadata();
    metadata.set("end-user", user);
    let backend = "";
    const options = { deadline: Date.now() + 5000 };
    const request = client.makeUnaryRequest(method, bytes, bytes, Buffer.alloc(0), metadata, options, (error) => {
      const status = error ? grpc.status[error.code] : "OK";
      const ms = Math.round((performance.now() - started) * 10) / 10;
      resolve({ user, status, backend, error: error ? error.details : "", ms });
    });
    request.on("metadata", (answer) => {
      backend = answer.get("x-mesh-backend")[0] ?? "";
    });
  });
}

async function main() {
  let ended = false;
  process.stdin.on("end", () => (ended = true)).resume();
  for (let number = 1; !ended; number++) {
    console.log(JSON.stringify(await call(number % 3 ? "guest" : "jason")));
    await new Promise((resolve) => setTimeout(resolve, Number(pause) * 1000));
  }
  process.exit(0);
}

main();
