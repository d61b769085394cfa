// What ask.py is in Python, with the openai package of JavaScript: run in a folder where it is installed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(process.cwd() + "/"));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const { url, key, model, items } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const answer = await client.embeddings.create({ model, input: items });
console.log(JSON.stringify(answer.data.map((entry) => entry.embedding)));
