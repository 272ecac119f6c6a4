import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { ApiError, api, data, type Candidate } from "../../api/client";
import { queryClient } from "../../api/queries";
import { useMe } from "../../app/session";
import { useToolEvents } from "../../live/hooks";
import type { LiveEvent } from "../../live/socket";
import { Asked, Badge, Button, Facts, Failure, Field, StrangersText } from "../../ui/basics";
import { Dialog } from "../../ui/Dialog";
import { duration, oneLine, visible } from "../../ui/text";

const STEPS = ["fetch", "prove", "register"];

/** What an install would do, to the letter; then its approval, its course and its end. */
export function InstallDialog({ candidate, onClose }: { candidate: Candidate; onClose: () => void }) {
  const me = useMe();
  const [env, setEnv] = useState<Record<string, string>>({});
  const [args, setArgs] = useState<Record<string, string>>({});
  const [folder, setFolder] = useState("");
  const [network, setNetwork] = useState(false);
  const [told, setTold] = useState<LiveEvent[]>([]);
  const wish = {
    name: candidate.name,
    env: Object.fromEntries(Object.entries(env).filter(([, value]) => value !== "")),
    network,
    arguments: Object.fromEntries(Object.entries(args).filter(([, value]) => value !== "")),
    folders: folder === "" ? [] : [folder],
    approve: false,
    dry_run: false,
  };
  const plan = useQuery({
    queryKey: ["plan", wish],
    queryFn: async ({ signal }) => {
      const answer = await data(api.POST("/api/v1/catalog/install", { body: { ...wish, dry_run: true }, signal }));
      if (!("plan" in answer)) throw new Error("the gateway answered without a plan");
      return answer.plan;
    },
    gcTime: 0,
  });
  const install = useMutation({
    mutationFn: async () => {
      setTold([]);
      const answer = await data(
        api.POST("/api/v1/catalog/install", { body: { ...wish, approve: plan.data?.allowed_by === null, ...(plan.data === undefined ? {} : { digest: plan.data.digest }) } }),
      );
      if ("plan" in answer) throw new Error("the gateway answered with a plan only");
      return answer;
    },
    onSettled: () => queryClient.invalidateQueries(),
  });
  useToolEvents(
    (events) => setTold((now) => [...now, ...events.filter((one) => one["name"] === candidate.name)].slice(-50)),
    ["install_started", "install_progress", "install_failed"],
  );
  const step = told.findLast((one) => typeof one["step"] === "string")?.["step"] as string | undefined;
  const done = install.data;
  return (
    <Dialog title={`Install ${oneLine(candidate.title ?? candidate.name, 60)}`} open onClose={onClose} wide>
      {done === undefined ? (
        <>
          <Asked query={plan}>
            {(found) => (
              <>
                <p>This is what will be done, and nothing else:</p>
                <pre className="text" tabIndex={0} aria-label="commands">
                  {found.commands.map((one) => `$ ${visible(one.join(" "))}`).join("\n")}
                  {found.commands.length === 0 && "nothing is fetched: it runs elsewhere"}
                </pre>
                <Facts
                  of={[
                    ["then runs", <code key="run">{visible(found.run)}</code>],
                    ["as the server", found.server_id],
                    ["package", `${found.kind} ${found.identifier} ${found.version ?? ""}`],
                    ["confined", found.confined ? <Badge key="c" tone="good">{found.folders.length > 0 ? "yes: its own files, and what it is given" : "yes: its own files, nothing of yours"}</Badge> : <Badge key="c" tone="warn">no</Badge>],
                    ["network", found.network ? <Badge key="n" tone="warn">yes</Badge> : <Badge key="n" tone={found.wants_network ? "warn" : "good"}>{found.wants_network ? "none, though it plainly needs one" : "none"}</Badge>],
                    ...(found.folders.length > 0 ? [["may use", found.folders.map((one) => visible(one)).join(", ")] as [string, string]] : []),
                    ["allowed by", found.allowed_by === null ? "no rule: it takes your approval" : `rule ${found.allowed_by + 1} of discovery.install.allow`],
                  ]}
                />
                {found.obstacle !== null && <p className="problem">It cannot run here: {oneLine(found.obstacle, 300)}</p>}
              </>
            )}
          </Asked>
          {me.admin && (
            <>
              {[...new Set([...Object.keys(args), ...(plan.data?.needs_arguments ?? [])])].map((name) => (
                <Field key={name} label={name} hint={`${oneLine(plan.data?.asks[name] ?? "Of its command line", 200)}. A secret: give a reference, \${env:NAME} or \${file:/path}.`}>
                  {(id) => <input id={id} value={args[name] ?? ""} autoComplete="off" spellCheck={false} onChange={(event) => setArgs({ ...args, [name]: event.target.value })} />}
                </Field>
              ))}
              {(plan.data?.needs_folder || folder !== "") && (
                <Field label="folder" hint="On the gateway's machine, to work on: an absolute path, with :ro behind it to have it read only.">
                  {(id) => <input id={id} value={folder} autoComplete="off" spellCheck={false} onChange={(event) => setFolder(event.target.value)} />}
                </Field>
              )}
              {candidate.needs.map((need) => (
                <Field key={need.name} label={need.name} hint={`${oneLine(need.description ?? "", 200)}${need.secret ? " A secret: give a reference, ${env:NAME} or ${file:/path}." : ""}`}>
                  {(id) => <input id={id} value={env[need.name] ?? ""} autoComplete="off" spellCheck={false} placeholder={need.secret ? "${env:" + need.name + "}" : ""} onChange={(event) => setEnv({ ...env, [need.name]: event.target.value })} />}
                </Field>
              ))}
              <label className="check">
                <input type="checkbox" checked={network} onChange={(event) => setNetwork(event.target.checked)} /> let it use the network
              </label>
            </>
          )}
          {install.error !== null && (
            <>
              <Failure error={install.error} />
              <Output error={install.error} />
            </>
          )}
          {install.isPending && (
            <div role="status" className="progress">
              <ol>
                {STEPS.map((one) => (
                  <li key={one} className={step === one ? "now" : STEPS.indexOf(one) < STEPS.indexOf(step ?? "") ? "done" : ""}>
                    {one}
                  </li>
                ))}
              </ol>
              <p>{oneLine(String(told.at(-1)?.["message"] ?? "starting"), 200)}</p>
            </div>
          )}
          <div className="actions end">
            <Button onClick={onClose}>{install.isPending ? "Leave it running" : "Not now"}</Button>
            <Button look="primary" busy={install.isPending} disabled={plan.data === undefined} onClick={() => install.mutate()}>
              {plan.data?.allowed_by === null ? "Approve and install" : "Install"}
            </Button>
          </div>
        </>
      ) : (
        <>
          <p>
            <Badge tone="good">installed</Badge> in {duration((done.seconds ?? 0) * 1000)}, as{" "}
            <Link to="/ui/servers/$serverId" params={{ serverId: done.server_id }}>
              {oneLine(done.server_id, 60)}
            </Link>
          </p>
          {done.proof && (
            <p>
              Tried: {oneLine(done.proof.tool, 60)} {done.proof.ok ? "answered" : done.proof.needs_account ? "needs your account" : "failed"} in {duration(done.proof.duration_ms)}.
              {done.proof.said !== null && done.proof.said !== undefined && <> It said: {oneLine(done.proof.said, 300)}</>}
            </p>
          )}
          {(done.notes ?? []).map((note) => (
            <p key={note} className="dim">
              {oneLine(note, 300)}
            </p>
          ))}
          <ul className="rows">
            {done.tools.map((id) => (
              <li key={id}>
                <Link to="/ui/tools/$toolId" params={{ toolId: id }}>
                  {oneLine(id, 80)}
                </Link>
              </li>
            ))}
          </ul>
          <div className="actions end">
            <Button look="primary" onClick={onClose}>
              Done
            </Button>
          </div>
        </>
      )}
    </Dialog>
  );
}

function Output({ error }: { error: unknown }) {
  const details = error instanceof ApiError ? (error.details as { output?: string[]; command?: unknown } | undefined) : undefined;
  return details?.output?.length ? <StrangersText text={details.output.join("\n")} className="log" /> : null;
}
