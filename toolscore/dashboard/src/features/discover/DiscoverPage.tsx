import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, getRouteApi, useNavigate } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";
import { api, data, whole, type Candidate, type Schemas } from "../../api/client";
import { approvals, candidates as candidatesQuery, installed as installedQuery, queryClient } from "../../api/queries";
import { useMe } from "../../app/session";
import { Ago, Asked, Badge, Button, Card, Empty, Meter, Page, State, toast } from "../../ui/basics";
import { Confirmed } from "../../ui/Dialog";
import { useDraft } from "../../ui/draft";
import { duration, oneLine, percent, visible } from "../../ui/text";
import { InstallDialog } from "./InstallDialog";

const route = getRouteApi("/ui/discover");
const EXAMPLES = ["what time is it in Tokyo?", "query a Postgres database", "send a message to a Slack channel"];

/** From a task to the tools that do it: those that are here, and those that can be had. */
export function DiscoverPage() {
  const { task } = route.useSearch();
  const navigate = useNavigate({ from: "/ui/discover" });
  const { typed, setTyped, settle } = useDraft(task, (next) => void navigate({ search: { task: next } }));
  const asked = useQuery({
    queryKey: ["discover", task],
    queryFn: ({ signal }) => data(api.POST("/api/v1/tools/analyze-gap", { body: { task_description: task ?? "" }, signal })),
    enabled: task !== undefined,
  });
  function look(event: FormEvent): void {
    event.preventDefault();
    settle();
  }
  return (
    <Page title="Discover" lead="Describe what is to be done. You see which tools here do it, and what is missing.">
      <Card>
        <form onSubmit={look} className="ask">
          <label htmlFor="task">What is to be done?</label>
          <textarea id="task" rows={2} value={typed} onChange={(event) => setTyped(event.target.value)} placeholder={EXAMPLES[0]} />
          <div className="actions">
            <Button look="primary" type="submit" busy={asked.isFetching} disabled={typed.trim() === ""}>
              Look
            </Button>
            {task === undefined &&
              EXAMPLES.map((one) => (
                <Button
                  key={one}
                  look="quiet"
                  onClick={() => void navigate({ search: { task: one } })}
                >
                  {one}
                </Button>
              ))}
          </div>
        </form>
      </Card>
      {task !== undefined && <Asked query={asked}>{(analysis) => <Analysis analysis={analysis} task={task} />}</Asked>}
      <Approvals />
      <Installed />
    </Page>
  );
}

const WORDS: Record<string, string> = {
  sufficient: "The tools here do this",
  unsure: "Perhaps the tools here do this",
  gap: "Something is missing for this",
};

function Analysis({ analysis, task }: { analysis: Schemas["AnalysisShape"]; task: string }) {
  const [look, setLook] = useState(analysis.verdict === "gap");
  return (
    <>
      <Card
        title={WORDS[analysis.verdict] ?? analysis.verdict}
        actions={
          <span className="badges">
            <State of={analysis.verdict} /> <span className="dim">{percent(analysis.confidence)} sure, says the {oneLine(analysis.judged_by, 40)}</span>
          </span>
        }
      >
        <ol className="steps plain">
          {analysis.steps.map((step, index) => (
            <li key={index}>
              <h3>
                {oneLine(step.step, 300)} <State of={step.verdict} /> <span className="dim">{percent(step.confidence)}</span>
              </h3>
              <p className="dim">
                {oneLine(step.reason, 300)}
                {step.needs.length > 0 && `; needs: ${step.needs.join(", ")}`}
              </p>
              {step.missing !== null && <p className="problem">Missing: {oneLine(step.missing.capability, 300)}</p>}
              <ul className="rows">
                {[...step.tools].sort((one, two) => two.relevance - one.relevance).map((one) => (
                  <li key={one.tool_id}>
                    <Link to="/ui/tools/$toolId" params={{ toolId: one.tool_id }} className="grow">
                      {oneLine(one.tool_id, 80)}
                    </Link>
                    <Meter value={one.relevance} label="relevance" />
                  </li>
                ))}
                {step.tools.length === 0 && <li className="dim">No tool comes near.</li>}
              </ul>
            </li>
          ))}
        </ol>
        {!look && <Button onClick={() => setLook(true)}>Look in the catalogs all the same</Button>}
      </Card>
      {look && <Candidates query={missingWords(analysis, task)} />}
    </>
  );
}

function missingWords(analysis: Schemas["AnalysisShape"], task: string): string {
  const step = analysis.steps.find((one) => one.verdict === "gap") ?? analysis.steps.find((one) => one.missing !== null);
  return step?.step ?? task;
}

function Candidates({ query }: { query: string }) {
  const me = useMe();
  const asked = useQuery(candidatesQuery(query));
  const [chosen, setChosen] = useState<Candidate | null>(null);
  return (
    <Card title="Servers that may do it" actions={<span className="dim">from the catalogs, the likeliest that can run here first</span>}>
      <Asked query={asked}>
        {({ servers, sources }) => (
          <>
            {servers.length === 0 && <Empty title="No catalog has one" />}
            <ul className="candidates">
              {[...servers].sort((one, two) => Number(cannotRun(one)) - Number(cannotRun(two)) || two.confidence - one.confidence).map((one) => (
                <li key={`${one.source} ${one.name}`}>
                  <div className="card-head">
                    <h3>{oneLine(one.title ?? one.name, 80)}</h3>
                    <span className="badges">
                      <Meter value={one.confidence} label="how likely it does this" />
                      {one.installed_as ? <Badge tone="good">installed</Badge> : one.allowed ? <Badge tone="good">allowed by a rule</Badge> : null}
                    </span>
                  </div>
                  <p>{oneLine(one.description, 400)}</p>
                  <p className="dim">
                    <code>{oneLine(one.name, 100)}</code> {oneLine(one.version ?? "", 30)} · {oneLine(one.publisher ?? "unknown publisher", 60)}
                    {one.publisher_checked && " (checked)"} · {oneLine(one.licence ?? "no licence named", 40)} · {oneLine(one.source, 40)}
                  </p>
                  {one.obstacle !== null && <p className="problem">{oneLine(one.obstacle, 300)}</p>}
                  {one.installed_as ? (
                    <Link to="/ui/servers/$serverId" params={{ serverId: one.installed_as }}>
                      {oneLine(one.installed_as, 60)}
                    </Link>
                  ) : (
                    one.plan !== null &&
                    (me.admin || one.allowed) && (
                      <Button look="primary" onClick={() => setChosen(one)}>
                        Install …
                      </Button>
                    )
                  )}
                </li>
              ))}
            </ul>
            {chosen !== null && <InstallDialog candidate={chosen} onClose={() => setChosen(null)} />}
            <p className="dim">
              Catalogs:{" "}
              {sources.map((one) => `${oneLine(one.name, 40)} (${one.servers} servers${one.age_seconds === null ? "" : `, ${duration(one.age_seconds * 1000)} old`}${one.error === null ? "" : `, ${oneLine(one.error, 80)}`})`).join(", ")}
            </p>
          </>
        )}
      </Asked>
    </Card>
  );
}

function Approvals() {
  const me = useMe();
  const asked = useQuery({ ...approvals(), enabled: me.admin });
  const navigate = useNavigate({ from: "/ui/discover" });
  const dismiss = useMutation({
    mutationFn: (id: string) => whole(api.DELETE("/api/v1/catalog/approvals/{approval_id}", { params: { path: { approval_id: id } } })),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["approvals"] }),
  });
  if ((asked.data?.approvals.length ?? 0) === 0) return null;
  return (
    <Card title="Waiting for approval">
      <ul className="rows">
        {asked.data?.approvals.map((one) => (
          <li key={one.approval_id}>
            <span className="grow">
              <strong>{oneLine(one.task, 200)}</strong>{" "}
              <span className="dim">
                {oneLine(one.principal, 40)}, <Ago at={one.at} />: {oneLine(one.servers.join(", "), 160)}
              </span>
            </span>
            <Button look="primary" onClick={() => void navigate({ search: { task: one.task } })}>
              Look
            </Button>
            <Button busy={dismiss.isPending && dismiss.variables === one.approval_id} onClick={() => dismiss.mutate(one.approval_id)}>
              Dismiss
            </Button>
          </li>
        ))}
      </ul>
    </Card>
  );
}

function Installed() {
  const me = useMe();
  const asked = useQuery(installedQuery());
  const undo = useMutation({
    mutationFn: (name: string) => whole(api.DELETE("/api/v1/catalog/installed/{name}", { params: { path: { name } } })),
    onSuccess: (answer) => toast(`${answer.data.server_id} is gone, with all that was installed for it`, "good"),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries(),
  });
  return (
    <Card title="Installed from catalogs">
      <Asked query={asked}>
        {({ servers }) =>
          servers.length === 0 ? (
            <Empty title="Nothing yet">What a task lacks can be installed from here.</Empty>
          ) : (
            <ul className="rows">
              {servers.map((one) => (
                <li key={one.server_id}>
                  <span className="grow">
                    <Link to="/ui/servers/$serverId" params={{ serverId: one.server_id }}>
                      {oneLine(one.server_id, 60)}
                    </Link>{" "}
                    <span className="dim">
                      {visible(one.identifier)} {visible(one.version)}, {one.kind}
                    </span>
                  </span>
                  {one.proof && <Badge tone={one.proof.ok ? "good" : "warn"}>{one.proof.ok ? "proved" : "not proved"}</Badge>}
                  {me.admin && (
                    <Confirmed
                      label="Uninstall"
                      question={`Uninstall ${one.server_id}? Its tools, its files and its data go.`}
                      does="Uninstall it"
                      busy={undo.isPending && undo.variables === one.server_id}
                      onConfirm={() => undo.mutate(one.server_id)}
                    />
                  )}
                </li>
              ))}
            </ul>
          )
        }
      </Asked>
    </Card>
  );
}

/** Whether a server cannot be installed on the gateway's machine, whatever one gives it. */
function cannotRun(one: Candidate): boolean {
  return one.plan === null || one.plan.obstacle !== null;
}
