// The TypeScript SDK 2.x: streamable HTTP in the era that it chooses, and stdio.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [url, toolscore] = process.argv.slice(2);
const ways = [
  new StreamableHTTPClientTransport(new URL(`${url}/mcp`)),
  new StdioClientTransport({ command: toolscore, args: ["stdio", "--url", url] }),
];
for (const way of ways) {
  const client = new Client({ name: "typescript-2", version: "1" });
  await client.connect(way);
  const { tools } = await client.listTools();
  if (!tools.some((tool) => tool.name === "alpha__echo")) throw new Error("alpha__echo is missing");
  const result = await client.callTool({ name: "alpha__echo", arguments: { text: "hi" } });
  if (result.content[0].text !== "hi") throw new Error(JSON.stringify(result));
  await client.close();
}
process.exit(0);
