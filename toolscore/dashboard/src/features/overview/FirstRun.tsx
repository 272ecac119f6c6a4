import { useMutation } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { Play, X } from "lucide-react";
import { api, whole } from "../../api/client";
import { useMe } from "../../app/session";
import { Button, Card, Failure, Snippet } from "../../ui/basics";
import { Content } from "../../ui/Content";
import { Tabs } from "../../ui/Tabs";
import { duration } from "../../ui/text";

const PYTHON_EXECUTE = "python-executor-mcp-server__python_execute";
const CODE = "import platform\nprint('Python', platform.python_version())\nprint(sum(range(1000)))";

/** The way in: a call to try, a server to add, a client to connect. */
export function FirstRun({ onHide }: { onHide: () => void }) {
  const me = useMe();
  const run = useMutation({
    mutationFn: () => whole(api.POST("/execute_tool", { body: { tool_id: PYTHON_EXECUTE, parameters: { code: CODE }, cache: true } })),
  });
  return (
    <Card
      title="How to begin"
      className="first-run"
      actions={
        <Button look="quiet" onClick={onHide} aria-label="Hide how to begin">
          <X size={16} aria-hidden />
        </Button>
      }
    >
      <p>
        ToolScore reaches MCP servers of every kind at one address, <code>{window.location.origin}/mcp</code>, finds the tool that fits a task, runs
        Python in a sandbox, and measures every call. Three steps:
      </p>
      <ol className="steps">
        <li>
          <h3>Try a call</h3>
          <p className="dim">The sandbox is there from the start. This runs three lines of Python in it.</p>
          <Snippet text={CODE} label="the code" />
          <Button look="primary" busy={run.isPending} onClick={() => run.mutate()}>
            <Play size={15} aria-hidden /> Run it
          </Button>
          {run.error !== null && <Failure error={run.error} />}
          {run.data !== undefined && (
            <>
              <p className="dim">answered in {duration(run.data.performance.duration_ms)}</p>
              <Content blocks={run.data.data.content} structured={run.data.data.structured_content} />
            </>
          )}
        </li>
        <li>
          <h3>Add a server</h3>
          <p className="dim">Any MCP server: a command, an address, or the file of a client that you use already.</p>
          {me.admin ? (
            <Link className="button primary" to="/ui/servers" search={{ add: true }}>
              Add a server
            </Link>
          ) : (
            <p>This takes a key with the scope admin.</p>
          )}
          <p className="dim">
            No server for your task? <Link to="/ui/discover">Describe it</Link>, and the catalogs are searched.
          </p>
        </li>
        <li>
          <h3>Connect your client</h3>
          <Tabs label="Your client" tabs={clients(window.location.origin).map((one) => ({ id: one.name.replace(" ", "-"), title: one.name, content: () => <Snippet text={one.text} label={one.name} /> }))} />
        </li>
      </ol>
    </Card>
  );
}

/** What connects a client to this gateway, by its name. */
export function clients(origin: string): { name: string; text: string }[] {
  const url = `${origin}/mcp`;
  const json = (value: unknown): string => JSON.stringify(value, null, 2);
  return [
    { name: "Claude Code", text: `claude mcp add --transport http toolscore ${url}` },
    {
      name: "Claude Desktop",
      text: `# claude_desktop_config.json, or: toolscore connect claude-desktop\n${json({ mcpServers: { toolscore: { command: "toolscore", args: ["stdio", "--url", origin] } } })}`,
    },
    { name: "Cursor", text: `# ~/.cursor/mcp.json, or: toolscore connect cursor\n${json({ mcpServers: { toolscore: { url } } })}` },
    { name: "VS Code", text: `# .vscode/mcp.json, or: toolscore connect vscode\n${json({ servers: { toolscore: { type: "http", url } } })}` },
    {
      name: "Python",
      text: `import asyncio\nfrom mcp import Client\n\n\nasync def main():\n    async with Client("${url}") as client:\n        for tool in (await client.list_tools()).tools:\n            print(tool.name)\n\n\nasyncio.run(main())`,
    },
    {
      name: "curl",
      text: `curl -s ${origin}/execute_tool -H 'content-type: application/json' \\\n  -d '{"tool_id": "${PYTHON_EXECUTE}", "parameters": {"code": "print(6 * 7)"}}'`,
    },
  ];
}
