import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, getRouteApi } from "@tanstack/react-router";
import { useState } from "react";
import { ApiError, api, data, type Call, type FullCall } from "../../api/client";
import { call as callQuery } from "../../api/queries";
import { Ago, Asked, Badge, Button, Card, Empty, Facts, Failure, Page, State, StrangersText } from "../../ui/basics";
import { Content } from "../../ui/Content";
import { DiffView } from "../../ui/Diff";
import { JsonTree } from "../../ui/JsonTree";
import { duration, oneLine } from "../../ui/text";

const route = getRouteApi("/ui/calls/$callId");

/** One call: what went in, what came out, where its time went; and making it again. */
export function CallPage() {
  const { callId } = route.useParams();
  const asked = useQuery(callQuery(callId));
  return (
    <Page
      title={asked.data === undefined ? "Call" : asked.data.tool_id === "-" ? asked.data.name : asked.data.tool_id}
      lead={
        asked.data !== undefined && (
          <span className="badges">
            <State of={asked.data.outcome} />
            <Ago at={asked.data.at} />
            <span className="dim">{duration(asked.data.duration_ms)}</span>
            {asked.data.cache !== null && <Badge tone="info">from the cache, {asked.data.cache}</Badge>}
          </span>
        )
      }
    >
      <Asked query={asked}>
        {(call) => (
          <>
            {call.error !== null && (
              <Card title="Error">
                <StrangersText text={call.error} />
              </Card>
            )}
            <Timing call={call} />
            <div className="columns">
              <Card title="Arguments" actions={call.redacted.includes("arguments") && <Badge tone="warn">secrets taken out</Badge>}>
                <JsonTree value={call.arguments} label="arguments" />
              </Card>
              <Card title="Result" actions={call.redacted.includes("result") && <Badge tone="warn">secrets taken out</Badge>}>
                <Result value={call.result} />
              </Card>
            </div>
            {(call.parent !== null || (call.calls?.length ?? 0) > 0) && <Tree call={call} />}
            <Replay call={call} />
            <Card title="Facts">
              <Facts
                of={[
                  ["caller", <Link key="who" to="/ui/calls" search={{ principal: call.principal }}>{oneLine(call.principal, 60)}</Link>],
                  ["tool", call.tool_id === "-" ? null : <Link key="tool" to="/ui/tools/$toolId" params={{ toolId: call.tool_id }}>{oneLine(call.tool_id, 80)}</Link>],
                  ["server", call.server_id === "-" ? null : <Link key="server" to="/ui/servers/$serverId" params={{ serverId: call.server_id }}>{oneLine(call.server_id, 60)}</Link>],
                  ["call", <code key="call">{call.call_id}</code>],
                  ["request", <Link key="request" to="/ui/calls" search={{ request_id: call.request_id }}>{oneLine(call.request_id, 80)}</Link>],
                  ["at", new Date(call.at).toLocaleString()],
                ]}
              />
            </Card>
          </>
        )}
      </Asked>
    </Page>
  );
}

function Result({ value }: { value: unknown }) {
  if (value === null || value === undefined) return <Empty title="There was none" />;
  const result = value as { content?: unknown; structuredContent?: unknown };
  if (Array.isArray(result.content)) return <Content blocks={result.content} structured={result.structuredContent} />;
  return <JsonTree value={value} label="result" />;
}

/** Where the time went: checks before, the queue at the server, the server, and what is left. */
function Timing({ call }: { call: FullCall }) {
  const queued = call.queued_ms ?? 0;
  const served = call.server_ms ?? 0;
  const own = Math.max(0, call.duration_ms - queued - served);
  const parts = [
    { name: "gateway", took: own, colour: "violet" },
    { name: "waiting for a place", took: queued, colour: "warn" },
    { name: "server", took: served, colour: "accent" },
  ];
  const total = Math.max(call.duration_ms, 0.001);
  let at = 0;
  return (
    <Card title="Where its time went">
      <svg className="timing" viewBox="0 0 1000 14" preserveAspectRatio="none" role="img" aria-label={parts.map((one) => `${one.name} ${duration(one.took)}`).join(", ")}>
        {parts.map((one) => {
          const x = (at / total) * 1000;
          at += one.took;
          return <rect key={one.name} x={x} width={Math.max((one.took / total) * 1000, one.took > 0 ? 2 : 0)} height="14" className={`fill-${one.colour}`} />;
        })}
      </svg>
      <p className="badges">
        {parts.map((one) => (
          <span key={one.name}>
            <span className={`key fill-${one.colour}`} aria-hidden /> {one.name} <strong>{duration(one.took)}</strong>
          </span>
        ))}
      </p>
      {call.server_ms === null && <p className="dim">It went to no server.</p>}
    </Card>
  );
}

function Tree({ call }: { call: FullCall }) {
  return (
    <Card title={call.parent !== null ? "Made by code" : "Calls that its code made"}>
      <ul className="tree">
        {call.parent !== null && (
          <li>
            <Link to="/ui/calls/$callId" params={{ callId: call.parent }}>
              the run of code
            </Link>
          </li>
        )}
        <li>
          <strong>{oneLine(call.tool_id, 80)}</strong>
          <ul>
            {(call.calls ?? []).map((one) => (
              <Inner key={one.call_id} call={one} />
            ))}
          </ul>
        </li>
      </ul>
    </Card>
  );
}

function Inner({ call }: { call: Call }) {
  return (
    <li>
      <Link to="/ui/calls/$callId" params={{ callId: call.call_id }}>
        {oneLine(call.tool_id, 80)}
      </Link>{" "}
      <State of={call.outcome} /> <span className="dim">{duration(call.duration_ms)}</span>
    </li>
  );
}

function Replay({ call }: { call: FullCall }) {
  const [confirm, setConfirm] = useState(false);
  const again = useMutation({
    mutationFn: () => data(api.POST("/api/v1/calls/{call_id}/replay", { params: { path: { call_id: call.call_id } }, body: { confirm, offline: false, limit: 1 } })),
  });
  const risky = again.error instanceof ApiError && again.error.status === 409 && !confirm;
  return (
    <Card title="Make it again" actions={<span className="dim">past the cache; nothing is learned from it</span>}>
      <div className="actions">
        <Button look="primary" busy={again.isPending} disabled={call.tool_id === "-"} onClick={() => again.mutate()}>
          Replay
        </Button>
        {(risky || confirm) && (
          <label className="check">
            <input type="checkbox" checked={confirm} onChange={(event) => setConfirm(event.target.checked)} /> even if it does its work twice
          </label>
        )}
      </div>
      {again.error !== null && <Failure error={again.error} />}
      {again.data !== undefined && (
        <div aria-live="polite">
          <p className="badges">
            {again.data.same ? <Badge tone="good">the same result</Badge> : <Badge tone="warn">the result differs</Badge>}
            {again.data.definition_changed && <Badge tone="warn">the tool's definition is another</Badge>}
            {again.data.result_was_redacted && <Badge>secrets were taken out of the first</Badge>}
          </p>
          <div className="columns">
            <section>
              <h3>Then, {duration(again.data.then.duration_ms)}</h3>
              {again.data.then.error !== null && <StrangersText text={again.data.then.error} />}
              <Result value={again.data.then.result} />
            </section>
            <section>
              <h3>Now, {duration(again.data.now.duration_ms)}</h3>
              {again.data.now.error !== null && <StrangersText text={again.data.now.error} />}
              <Result value={again.data.now.result} />
            </section>
          </div>
          {again.data.difference !== "" && <DiffView diff={again.data.difference} />}
        </div>
      )}
    </Card>
  );
}
