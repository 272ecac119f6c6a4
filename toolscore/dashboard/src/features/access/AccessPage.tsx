import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";
import { api, data, whole, type Schemas } from "../../api/client";
import { approvals, keys as keysQuery, queryClient, settings as settingsQuery } from "../../api/queries";
import { Ago, Asked, Badge, Button, Card, Empty, Failure, Field, Page, Snippet, toast, useNow } from "../../ui/basics";
import { Confirmed, Dialog } from "../../ui/Dialog";
import { JsonTree } from "../../ui/JsonTree";
import { counted, number, oneLine, visible } from "../../ui/text";

type Key = Schemas["Key"];

/** Who may come in, what they may do, and how much. */
export function AccessPage() {
  return (
    <Page title="Access" lead="Who may come in, what they may do, and how much of it.">
      <Keys />
      <div className="columns">
        <Explain />
        <Rules />
      </div>
      <Waiting />
    </Page>
  );
}

function Keys() {
  const asked = useQuery({ ...keysQuery(), refetchOnMount: "always" });
  const [making, setMaking] = useState(false);
  const revoke = useMutation({
    mutationFn: (id: string) => whole(api.DELETE("/api/v1/keys/{key_id}", { params: { path: { key_id: id } } })),
    onSuccess: (answer) => toast(answer.message, "good"),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["keys"] }),
  });
  return (
    <Card
      title="API keys"
      actions={
        <Button look="primary" onClick={() => setMaking(true)}>
          Make a key
        </Button>
      }
    >
      <Asked query={asked}>
        {({ keys }) =>
          keys.length === 0 ? (
            <Empty title="No key yet">On this machine nobody is asked for one. Who comes from elsewhere shows a key.</Empty>
          ) : (
            <ul className="rows">
              {keys.map((one) => (
                <KeyRow key={one.key_id} of={one} busy={revoke.isPending && revoke.variables === one.key_id} onRevoke={() => revoke.mutate(one.key_id)} />
              ))}
            </ul>
          )
        }
      </Asked>
      {making && <MakeKey onClose={() => setMaking(false)} />}
    </Card>
  );
}

function KeyRow({ of, busy, onRevoke }: { of: Key; busy: boolean; onRevoke: () => void }) {
  const now = useNow();
  const expired = of.expires_at !== null && Date.parse(of.expires_at) <= now;
  return (
    <li className={of.revoked_at !== null || expired ? "gone" : ""}>
      <strong>{oneLine(of.name, 60)}</strong>
      <code>ts_{of.key_id}_…</code>
      {of.scopes.map((scope) => (
        <Badge key={scope} tone={scope === "admin" ? "warn" : "plain"}>
          {oneLine(scope, 40)}
        </Badge>
      ))}
      <span className="dim grow">
        made <Ago at={of.created_at} />
        {of.expires_at !== null && `, ${expired ? "expired" : "until"} ${new Date(of.expires_at).toLocaleDateString()}`}
      </span>
      {of.revoked_at !== null ? (
        <Badge>revoked</Badge>
      ) : (
        <Confirmed label="Revoke" question={`Revoke the key of ${oneLine(of.name, 60)}? What uses it is cut off within two seconds.`} does="Revoke it" busy={busy} onConfirm={onRevoke} />
      )}
    </li>
  );
}

function MakeKey({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  const [admin, setAdmin] = useState(false);
  const [days, setDays] = useState("90");
  const make = useMutation({
    mutationFn: () =>
      data(api.POST("/api/v1/keys", { body: { name: name.trim(), scopes: admin ? ["admin"] : [], ...(days === "" ? {} : { days: Number(days) }) } })),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["keys"] }),
  });
  return (
    <Dialog title={make.data === undefined ? "Make a key" : "Your new key"} open onClose={onClose}>
      {make.data === undefined ? (
        <form
          onSubmit={(event: FormEvent) => {
            event.preventDefault();
            make.mutate();
          }}
        >
          <Field label="Whose it is" hint="The name stands in the journal and in rules. Letters, digits and . _ @ -">
            {(id) => <input id={id} required maxLength={64} value={name} placeholder="ada" autoComplete="off" spellCheck={false} onChange={(event) => setName(event.target.value)} />}
          </Field>
          <Field label="Good for so many days" hint="Left empty: for ever.">
            {(id) => <input id={id} type="number" min={1} max={36_500} value={days} onChange={(event) => setDays(event.target.value)} />}
          </Field>
          <label className="check">
            <input type="checkbox" checked={admin} onChange={(event) => setAdmin(event.target.checked)} /> scope admin: may change the gateway
          </label>
          {make.error !== null && <Failure error={make.error} />}
          <Button look="primary" type="submit" busy={make.isPending}>
            Make it
          </Button>
        </form>
      ) : (
        <>
          <p>
            <strong>It is shown once.</strong> Only a hash of it is kept.
          </p>
          <Snippet text={make.data.key} label="the key" />
          <div className="actions end">
            <Button look="primary" onClick={onClose}>
              I have it
            </Button>
          </div>
        </>
      )}
    </Dialog>
  );
}

function Explain() {
  const [principal, setPrincipal] = useState("");
  const [tool, setTool] = useState("");
  const [scope, setScope] = useState("");
  const [given, setGiven] = useState("");
  const explain = useMutation({
    mutationFn: () =>
      data(
        api.GET("/api/v1/policy/explain", {
          params: {
            query: {
              principal: principal.trim(),
              tool_id: tool.trim(),
              ...(scope.trim() ? { scope: scope.trim().split(/[\s,]+/) } : {}),
              ...(given.trim() ? { arguments: given } : {}),
            },
          },
        }),
      ),
  });
  return (
    <Card title="May they?">
      <form
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          explain.mutate();
        }}
      >
        <Field label="Who">{(id) => <input id={id} required value={principal} placeholder="ada" spellCheck={false} onChange={(event) => setPrincipal(event.target.value)} />}</Field>
        <Field label="Which tool">{(id) => <input id={id} required value={tool} placeholder="time__get_current_time" spellCheck={false} onChange={(event) => setTool(event.target.value)} />}</Field>
        <Field label="With these scopes">{(id) => <input id={id} value={scope} placeholder="none" spellCheck={false} onChange={(event) => setScope(event.target.value)} />}</Field>
        <Field label="And these arguments" hint="A JSON object; left empty: whether they see the tool at all.">
          {(id) => <textarea id={id} rows={2} value={given} placeholder="{}" spellCheck={false} onChange={(event) => setGiven(event.target.value)} />}
        </Field>
        <Button look="primary" type="submit" busy={explain.isPending}>
          Explain
        </Button>
      </form>
      {explain.error !== null && <Failure error={explain.error} />}
      {explain.data !== undefined && (
        <div aria-live="polite">
          <p>
            <Badge tone={explain.data.allowed ? "good" : "bad"}>{explain.data.allowed ? "allowed" : "denied"}</Badge>{" "}
            {explain.data.rule === null ? `by the default, which is ${explain.data.default}` : `by rule ${explain.data.rule}`}
            {explain.data.reason !== "" && `: ${oneLine(explain.data.reason, 300)}`}
          </p>
          {explain.data.rule_text !== null && <JsonTree value={explain.data.rule_text} label="the rule" />}
        </div>
      )}
    </Card>
  );
}

function Rules() {
  const asked = useQuery(settingsQuery());
  return (
    <Card title="Rules and rates" actions={<Link to="/ui/settings">All settings</Link>}>
      <Asked query={asked}>
        {({ settings }) => {
          const of = (key: string): unknown => settings.find((one) => one.key === key)?.value;
          const rules = (of("policy.rules") as unknown[] | undefined) ?? [];
          const perMinute = of("rates.per_minute");
          const tools = Object.entries((of("rates.tools") as Record<string, unknown> | undefined) ?? {});
          return (
            <>
              <p>
                What no rule is about is <Badge tone={of("policy.default") === "allow" ? "good" : "bad"}>{String(of("policy.default"))}</Badge>
              </p>
              {rules.length === 0 ? (
                <p className="dim">There are no rules. They stand under policy.rules in toolscore.yaml.</p>
              ) : (
                <ol>
                  {rules.map((rule, index) => (
                    <li key={index}>
                      <code>{oneLine(JSON.stringify(rule), 400)}</code>
                    </li>
                  ))}
                </ol>
              )}
              <h3>Rates</h3>
              <p>
                {perMinute === 0 ? "No bound" : `${number(Number(perMinute))} calls a minute for each caller, ${number(Number(of("rates.burst")))} at once`}
                . Callers on this machine without a key have no bound.
              </p>
              {tools.length > 0 && (
                <ul>
                  {tools.map(([name, bound]) => (
                    <li key={name}>
                      <code>{visible(name)}</code> {oneLine(JSON.stringify(bound), 120)}
                    </li>
                  ))}
                </ul>
              )}
            </>
          );
        }}
      </Asked>
    </Card>
  );
}

function Waiting() {
  const asked = useQuery(approvals());
  return (
    <Card title="Approvals that wait" actions={<Link to="/ui/discover">Discover</Link>}>
      <Asked query={asked}>
        {({ approvals: waiting }) =>
          waiting.length === 0 ? (
            <Empty title="None">What an agent lacks and no rule lets it install comes here.</Empty>
          ) : (
            <>
              <p>{counted(waiting.length, "task")}</p>
              <ul className="rows">
                {waiting.map((one) => (
                  <li key={one.approval_id}>
                    <span className="grow">{oneLine(one.task, 200)}</span>
                    <Link className="button primary" to="/ui/discover" search={{ task: one.task }}>
                      Decide
                    </Link>
                  </li>
                ))}
              </ul>
            </>
          )
        }
      </Asked>
    </Card>
  );
}
