import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { Play } from "lucide-react";
import { useRef, useState } from "react";
import { api, data, whole } from "../../api/client";
import { queryClient, stats as statsQuery } from "../../api/queries";
import { Asked, Badge, Button, Card, Empty, Facts, Failure, Page, State, toast, useNow } from "../../ui/basics";
import { Code } from "../../ui/Code";
import { Content } from "../../ui/Content";
import { counted, duration, number, oneLine, visible } from "../../ui/text";

const SERVER = "python-executor-mcp-server";
const EXAMPLE = `import math

for n in range(1, 6):
    print(n, math.factorial(n))
`;

interface Times {
  p50_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
}

/** What an executor says of itself, in `server_stats`. */
interface Executor {
  engine: string;
  tier: string;
  python?: string;
  running: number;
  waiting: number;
  refused: number;
  ready_ms?: number;
  slow_path?: boolean;
  layers: Record<string, { ok: boolean; detail: string }>;
  sessions: { open: number; opened: number; expired: number; lost: number };
  engines: Record<
    string,
    {
      executions: number;
      exits: Record<string, number>;
      limits: Record<string, number>;
      phases: Record<string, Times>;
      pools: Record<string, { spares: number; children: number; waiting: number; restarts: number; last_error: string | null }>;
    }
  >;
}

const TIERS: Record<string, string> = {
  A: "everything stands between code and machine, a user id for each call",
  B: "everything, one user id for all calls",
  C: "Landlock, seccomp and limits; no namespaces",
};

/** The sandbox: how it confines, how busy it is, who has a session; and a cell to try it. */
export function PythonPage() {
  const stats = useQuery(statsQuery());
  return (
    <Page title="Python" lead="Code runs in a process of its own, confined, with nothing but what it was given.">
      <Cell />
      <Asked query={stats}>
        {({ server_stats: all }) => {
          const executors = Object.entries(all as Record<string, Executor>);
          return executors.length === 0 ? (
            <Empty title="No executor is connected">
              <Link to="/ui/servers/$serverId" params={{ serverId: SERVER }}>
                Look at it
              </Link>
            </Empty>
          ) : (
            executors.map(([id, one]) => <ExecutorCards key={id} id={id} executor={one} />)
          );
        }}
      </Asked>
      <Sessions open={Object.values((stats.data?.server_stats ?? {}) as Record<string, Executor>).reduce((sum, one) => sum + one.sessions.open, 0)} />
    </Page>
  );
}

function Cell() {
  const [code, setCode] = useState(EXAMPLE);
  const [session, setSession] = useState("");
  const [data, setData] = useState(false);
  const stop = useRef<AbortController | null>(null);
  const [began, setBegan] = useState(0);
  const now = useNow();
  const run = useMutation({
    mutationFn: () => {
      stop.current = new AbortController();
      setBegan(Date.now());
      const parameters = { code, ...(session.trim() ? { session_id: session.trim() } : {}), ...(data ? { packages: ["data"] } : {}) };
      return whole(api.POST("/execute_tool", { body: { tool_id: `${SERVER}__python_execute`, parameters, cache: true }, signal: stop.current.signal }));
    },
    onSettled: () =>
      Promise.all([...(session.trim() ? [queryClient.invalidateQueries({ queryKey: ["sessions"] })] : []), queryClient.invalidateQueries({ queryKey: ["calls"] })]),
  });
  const stopped = run.error instanceof DOMException && run.error.name === "AbortError";
  return (
    <div className="columns">
      <Card title="A cell to try">
        <Code label="Python code" language="python" value={code} onChange={setCode} onRun={() => run.mutate()} />
        <div className="actions">
          <Button look="primary" busy={run.isPending} onClick={() => run.mutate()}>
            <Play size={15} aria-hidden /> Run
          </Button>
          {run.isPending && (
            <Button look="danger" onClick={() => stop.current?.abort()}>
              Stop
            </Button>
          )}
          <label>
            Session{" "}
            <input value={session} placeholder="none: nothing is kept" spellCheck={false} onChange={(event) => setSession(event.target.value)} />
          </label>
          <label className="check">
            <input type="checkbox" checked={data} onChange={(event) => setData(event.target.checked)} /> with numpy, pandas and matplotlib
          </label>
          <span className="dim">Ctrl-Enter runs it, too</span>
        </div>
      </Card>
      <Card title="What it gave">
        {run.isPending && <p role="status">Running for {Math.max(0, Math.round((now - began) / 1000))} s …</p>}
        {stopped && <Empty title="Stopped">The call was cancelled.</Empty>}
        {run.error !== null && !stopped && <Failure error={run.error} />}
        {run.data === undefined && run.error === null && !run.isPending && <Empty title="Nothing yet" />}
        {run.data !== undefined && !run.isPending && (
          <div aria-live="polite">
            <p className="badges">
              <State of={run.data.data.is_error ? "tool_error" : "ok"} />
              <span className="dim">{duration(run.data.performance.duration_ms)}</span>
              <Link to="/ui/calls/$callId" params={{ callId: run.data.data.call_id }}>
                in the journal
              </Link>
            </p>
            <Content blocks={run.data.data.content} structured={run.data.data.structured_content} />
          </div>
        )}
      </Card>
    </div>
  );
}

function ExecutorCards({ id, executor }: { id: string; executor: Executor }) {
  return (
    <div className="columns">
      <Card title="How it confines" actions={<Badge tone={executor.tier === "A" || executor.tier === "B" ? "good" : "warn"}>tier {visible(executor.tier)}</Badge>}>
        <p>{TIERS[executor.tier] ?? "less than the tiers that run code by default"}</p>
        <ul className="rows">
          {Object.entries(executor.layers).map(([name, layer]) => (
            <li key={name}>
              <Badge tone={layer.ok ? "good" : "plain"}>{layer.ok ? "on" : "off"}</Badge>
              <strong>{visible(name.replaceAll("_", " "))}</strong>
              <span className="dim grow">{oneLine(layer.detail, 120)}</span>
            </li>
          ))}
        </ul>
      </Card>
      <Card title={oneLine(id, 60)}>
        <Facts
          of={[
            ["Python", executor.python ?? null],
            ["engine", executor.engine],
            ["running", number(executor.running)],
            ["waiting", number(executor.waiting)],
            ["refused", number(executor.refused)],
            ["sessions", `${number(executor.sessions.open)} open, ${number(executor.sessions.opened)} ever`],
          ]}
        />
        {Object.entries(executor.engines).map(([name, engine]) => (
          <section key={name}>
            <h3>
              {visible(name)}: {counted(engine.executions, "call")}
            </h3>
            <table className="small">
              <thead>
                <tr>
                  <th scope="col">phase</th>
                  <th scope="col">p50</th>
                  <th scope="col">p95</th>
                  <th scope="col">p99</th>
                </tr>
              </thead>
              <tbody>
                {Object.entries(engine.phases).map(([phase, times]) => (
                  <tr key={phase}>
                    <th scope="row">{visible(phase)}</th>
                    <td>{duration(times.p50_ms)}</td>
                    <td>{duration(times.p95_ms)}</td>
                    <td>{duration(times.p99_ms)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
            {Object.entries(engine.pools).map(([pool, one]) => (
              <p key={pool} className="dim">
                {visible(pool)}: {counted(one.spares, "spare")}, {number(one.waiting)} waiting, {counted(one.restarts, "restart")}
                {one.last_error !== null && `, ${oneLine(one.last_error, 120)}`}
              </p>
            ))}
            {Object.keys(engine.exits).length > 0 && (
              <p className="dim">
                ended:{" "}
                {Object.entries(engine.exits)
                  .map(([how, many]) => `${how} ${number(many)}`)
                  .join(", ")}
              </p>
            )}
          </section>
        ))}
      </Card>
    </div>
  );
}

interface Session {
  session_id: string;
  state: string;
  opened: number;
  idle_seconds: number;
  ends_in_seconds: number | null;
  packages: string[];
}

/** `open`: how many there are, of all callers; asking is a call, so it is done only where there are some. */
function Sessions({ open }: { open: number }) {
  const asked = useQuery({
    queryKey: ["sessions", open],
    refetchOnMount: "always",
    enabled: open > 0,
    initialData: open > 0 ? undefined : [],
    queryFn: async ({ signal }) => {
      const result = await data(api.POST("/execute_tool", { body: { tool_id: `${SERVER}__python_sessions`, parameters: {}, cache: false }, signal }));
      return (result.structured_content as { sessions?: Session[] } | null)?.sessions ?? [];
    },
  });
  const end = useMutation({
    mutationFn: (id: string) => whole(api.POST("/execute_tool", { body: { tool_id: `${SERVER}__python_session_reset`, parameters: { session_id: id }, cache: true } })),
    onSuccess: (_answer, id) => toast(`Session ${id} was ended`, "good"),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["sessions"] }),
  });
  return (
    <Card title="Your sessions" actions={<span className="dim">those of your own key</span>}>
      <Asked query={asked}>
        {(sessions) =>
          sessions.length === 0 ? (
            <Empty title="No session is open">A call with a session_id opens one: variables stay from call to call.</Empty>
          ) : (
            <ul className="rows">
              {sessions.map((one) => (
                <li key={one.session_id}>
                  <strong className="grow">{oneLine(one.session_id, 80)}</strong>
                  <State of={one.state} fallback="info" />
                  <span className="dim">
                    idle {duration(one.idle_seconds * 1000)}
                    {one.ends_in_seconds !== null && `, ends in ${duration(one.ends_in_seconds * 1000)}`}
                    {one.packages.length > 0 && `, ${one.packages.join(", ")}`}
                  </span>
                  <Button busy={end.isPending && end.variables === one.session_id} onClick={() => end.mutate(one.session_id)}>
                    End
                  </Button>
                </li>
              ))}
            </ul>
          )
        }
      </Asked>
    </Card>
  );
}
