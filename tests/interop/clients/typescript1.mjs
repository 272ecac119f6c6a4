// The TypeScript SDK 1.x: streamable HTTP, SSE, stdio.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, toolscore] = process.argv.slice(2);
const ways = [
  new StreamableHTTPClientTransport(new URL(`${url}/mcp`)),
  new SSEClientTransport(new URL(`${url}/sse`)),
  new StdioClientTransport({ command: toolscore, args: ["stdio", "--url", url] }),
];
for (const way of ways) {
  const client = new Client({ name: "typescript-1", version: "1" });
  await client.connect(way);
  const { tools } = await client.listTools();
  if (!tools.some((tool) => tool.name === "alpha__echo")) throw new Error("alpha__echo is missing");
  const result = await client.callTool({ name: "alpha__echo", arguments: { text: "hi" } });
  if (result.content[0].text !== "hi") throw new Error(JSON.stringify(result));
  await client.close();
}
process.exit(0);
