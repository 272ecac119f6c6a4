import { useInfiniteQuery, useMutation, useQuery } from "@tanstack/react-query";
import { Link, getRouteApi, useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { api, whole, type FullTool } from "../../api/client";
import { calls as callsQuery, queryClient, tool as toolQuery } from "../../api/queries";
import { useMe } from "../../app/session";
import { Ago, Asked, Badge, Button, Card, Empty, Facts, Failure, Meter, Page, Snippet, State, StrangersText, toast } from "../../ui/basics";
import { Content } from "../../ui/Content";
import { JsonTree } from "../../ui/JsonTree";
import { Tabs } from "../../ui/Tabs";
import { bytes, duration, number, oneLine, percent } from "../../ui/text";
import { CallTable } from "../calls/CallTable";
import { ArgumentsForm, type Arguments } from "./ArgumentsForm";
import { PinView } from "./PinView";

const route = getRouteApi("/ui/tools/$toolId");

/** One tool: run it, read it, see what is known of it. */
export function ToolPage() {
  const { toolId } = route.useParams();
  const { tab } = route.useSearch();
  const navigate = useNavigate({ from: "/ui/tools/$toolId" });
  const me = useMe();
  const asked = useQuery(toolQuery(toolId));
  const switched = useMutation({
    mutationFn: (off: boolean) =>
      whole(
        off
          ? api.POST("/api/v1/tools/{tool_id}/disable", { params: { path: { tool_id: toolId } } })
          : api.POST("/api/v1/tools/{tool_id}/enable", { params: { path: { tool_id: toolId } } }),
      ),
    onSuccess: (answer) => toast(answer.data.disabled ? "Disabled: nobody sees it any more" : "Enabled", "good"),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["tools"] }),
  });
  return (
    <Page
      title={asked.data?.name ?? toolId}
      lead={
        asked.data !== undefined && (
          <span className="badges">
            <Link to="/ui/servers/$serverId" params={{ serverId: asked.data.server_id }}>
              {oneLine(asked.data.server_id, 60)}
            </Link>
            {asked.data.disabled ? <State of="disabled" /> : <State of={asked.data.server_state} />}
            {asked.data.circuit !== "closed" && <Badge tone="bad">circuit {asked.data.circuit.replace("_", " ")}</Badge>}
            {asked.data.quarantined && <Badge tone="warn">quarantined</Badge>}
            {Object.entries(asked.data.annotations).map(([name, value]) =>
              value === true ? <Badge key={name}>{oneLine(name.replace(/Hint$/, "").replace(/([A-Z])/g, " $1").toLowerCase(), 30)}</Badge> : null,
            )}
            <span className="dim">{number(asked.data.tokens_estimate)} tokens</span>
          </span>
        )
      }
      actions={
        me.admin &&
        asked.data !== undefined && (
          <Button busy={switched.isPending} onClick={() => switched.mutate(!asked.data.disabled)}>
            {asked.data.disabled ? "Enable" : "Disable"}
          </Button>
        )
      }
    >
      <Asked query={asked}>
        {(tool) => (
          <>
            {tool.description !== "" && (
              <Card>
                <StrangersText text={tool.description} className="prose" />
              </Card>
            )}
            <Tabs
              label="About this tool"
              value={tab ?? (tool.quarantined ? "pin" : "run")}
              onChange={(next) => void navigate({ search: { tab: next }, replace: true })}
              tabs={[
                { id: "run", title: "Run", content: () => <Run key={tool.tool_id} tool={tool} /> },
                { id: "score", title: "Score", content: () => <ScoreView tool={tool} /> },
                { id: "calls", title: "Calls", content: () => <LastCalls toolId={tool.tool_id} /> },
                { id: "pin", title: tool.quarantined ? "Change to approve" : "Pin", content: () => <PinView toolId={tool.tool_id} /> },
                { id: "definition", title: "Definition", content: () => <Card><JsonTree value={tool.definition} label="definition" /></Card> },
              ]}
            />
          </>
        )}
      </Asked>
    </Page>
  );
}

function Run({ tool }: { tool: FullTool }) {
  const [given, setGiven] = useState<Arguments>(() => defaults(tool.input_schema));
  const [fresh, setFresh] = useState(false);
  const run = useMutation({
    mutationFn: (parameters: Arguments) =>
      whole(api.POST("/execute_tool", { body: { tool_id: tool.tool_id, parameters, cache: !fresh } })),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["calls"] }),
  });
  const answer = run.data;
  return (
    <div className="columns wide-left">
      <Card title="Arguments">
        {tool.disabled && <p className="problem">It is disabled: a call finds no such tool until it is enabled.</p>}
        {!tool.available && <p className="problem">Its server cannot be called just now.</p>}
        {tool.quarantined && <p className="problem">It is quarantined: a call is refused until the change is approved.</p>}
        <ArgumentsForm schema={tool.input_schema} value={given} onChange={setGiven} onRun={() => run.mutate(given)} busy={run.isPending} />
        <label className="check">
          <input type="checkbox" checked={fresh} onChange={(event) => setFresh(event.target.checked)} /> ask the server itself, even if a result is kept
        </label>
      </Card>
      <Card title="Result">
        {run.isPending && <p role="status">Running …</p>}
        {run.error !== null && <Failure error={run.error} />}
        {answer !== undefined && !run.isPending && (
          <div aria-live="polite">
            <p className="badges">
              {answer.data.is_error ? <State of="tool_error" /> : <State of="ok" />}
              <span className="dim">{duration(answer.performance.duration_ms)}</span>
              {answer.performance.cache_hit && <Badge tone="info">kept, {answer.performance.age_seconds ?? 0} s old</Badge>}
              <span className="dim">{bytes(JSON.stringify(answer.data.content).length)}</span>
              <Link to="/ui/calls/$callId" params={{ callId: answer.data.call_id }}>
                in the journal
              </Link>
            </p>
            {answer.data.suggestion !== undefined && <p className="hint">{oneLine(answer.data.suggestion, 500)}</p>}
            <Content blocks={answer.data.content} structured={answer.data.structured_content} />
          </div>
        )}
        {answer === undefined && !run.isPending && run.error === null && <Empty title="Nothing yet">Fill in the arguments and run it.</Empty>}
      </Card>
      <Card title="The same from elsewhere" className="span">
        <Tabs label="The same call" tabs={sameCall(tool, given).map((one) => ({ id: one.name.replace(" ", "-"), title: one.name, content: () => <Snippet text={one.text} label={one.name} /> }))} />
      </Card>
    </div>
  );
}

function defaults(schema: unknown): Arguments {
  const properties = (schema as { properties?: Record<string, { default?: unknown }> } | null)?.properties ?? {};
  return Object.fromEntries(
    Object.entries(properties)
      .filter(([, one]) => typeof one === "object" && one !== null && one.default !== undefined && one.default !== null)
      .map(([name, one]) => [name, one.default]),
  );
}

/** This call as curl, Python and MCP say it. */
export function sameCall(tool: Pick<FullTool, "tool_id">, given: Arguments): { name: string; text: string }[] {
  const origin = window.location.origin;
  const body = JSON.stringify({ tool_id: tool.tool_id, parameters: given });
  const json = JSON.stringify(given, null, 2);
  const python = JSON.stringify(json);
  return [
    { name: "curl", text: `curl -s ${origin}/execute_tool -H 'content-type: application/json' \\\n  -d '${body.replaceAll("'", `'\\''`)}'` },
    {
      name: "Python",
      text: `import asyncio, json\nfrom mcp import Client\n\n\nasync def main():\n    async with Client("${origin}/mcp") as client:\n        result = await client.call_tool(${JSON.stringify(tool.tool_id)}, json.loads(${python}))\n        print(result.content)\n\n\nasyncio.run(main())`,
    },
    {
      name: "MCP",
      text: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tools/call", params: { name: tool.tool_id, arguments: given } }, null, 2),
    },
    { name: "Command line", text: `toolscore call ${tool.tool_id} --json '${JSON.stringify(given).replaceAll("'", `'\\''`)}'` },
  ];
}

function ScoreView({ tool }: { tool: FullTool }) {
  const { score, windows } = tool;
  return (
    <div className="columns">
      <Card title="Score">
        <p className="figure">{score.value.toFixed(3)}</p>
        <p className="dim">from {number(score.calls)} calls; the last ones count most</p>
        <ul className="rows">
          {Object.entries(score.parts).map(([name, value]) => (
            <li key={name}>
              <span className="grow">{name}</span>
              {value === null ? <span className="dim">not known yet</span> : <Meter value={value} label={name} />}
            </li>
          ))}
        </ul>
        <ul>
          {score.reasons.map((reason) => (
            <li key={reason}>{oneLine(reason, 300)}</li>
          ))}
        </ul>
      </Card>
      <Card title="Calls of late">
        {Object.entries(windows).map(([name, window]) => (
          <section key={name}>
            <h3>the last {name.replace("m", " minutes").replace("1h", "hour")}</h3>
            <Facts
              of={[
                ["calls", number(window.count)],
                ["failed", window.count ? percent(window.errors / window.count) : null],
                ["p50", window.count ? duration(window.p50_ms) : null],
                ["p95", window.count ? duration(window.p95_ms) : null],
                ["p99", window.count ? duration(window.p99_ms) : null],
                ["slowest", window.count ? duration(window.max_ms) : null],
              ]}
            />
          </section>
        ))}
        <Facts of={[["first seen", <Ago key="seen" at={tool.first_seen} />], ["hash", <code key="hash">{tool.definition_hash.slice(0, 16)}</code>]]} />
      </Card>
    </div>
  );
}

const LAST = 50;

function LastCalls({ toolId }: { toolId: string }) {
  const asked = useInfiniteQuery(callsQuery({ tool_id: toolId }, LAST));
  return (
    <Card>
      <Asked query={asked}>
        {({ pages }) => (
          <CallTable calls={pages.flatMap((page) => page.calls)} more={asked.hasNextPage && !asked.isFetchingNextPage} onEnd={() => void asked.fetchNextPage()} />
        )}
      </Asked>
    </Card>
  );
}
