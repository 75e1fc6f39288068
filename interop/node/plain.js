// A program of Node.js's standard library that serves and calls HTTP/1.1, and knows nothing of any mesh.
//
//     plain.js PORT NAME
//
// `/who` is answered with what the request looks like here. `/call?url=URL` is answered with what that URL is, asked for by the proxy
// of the environment.
"use strict";

const http = require("node:http");

const [port, name] = process.argv.slice(2);
const proxy = new URL(process.env.HTTP_PROXY);

function answer(response, status, content) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(content));
}

function call(url, headers, response) {
  const options = { host: proxy.hostname, port: proxy.port, path: url, headers: { ...headers, host: new URL(url).host } };
  const request = http.get(options, (called) => {
    let body = "";
    called.setEncoding("utf8");
    called.on("data", (chunk) => (body += chunk));
    called.on("end", () => {
      const content = called.statusCode === 200 ? { name, called: JSON.parse(body) } : { name, error: body };
      answer(response, called.statusCode, content);
    });
  });
  request.on("error", (error) => answer(response, 500, { name, error: String(error) }));
}

http
  .createServer((request, response) => {
    const url = new URL(request.url, "http://here");
    const asked = url.searchParams.get("url");
    if (url.pathname !== "/call" || !asked) {
      answer(response, 200, { name, path: request.url, headers: request.headers });
      return;
    }
    // What a program hands on of the requests that it works for.
    const handedOn = ["x-user", "traceparent"].filter((name) => name in request.headers);
    call(asked, Object.fromEntries(handedOn.map((name) => [name, request.headers[name]])), response);
  })
  .listen(Number(port), "127.0.0.1");
