import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { api, whole } from "../../api/client";
import { approvals, health, pins, queryClient, servers } from "../../api/queries";
import { useMe } from "../../app/session";
import { Button, Card, State, toast } from "../../ui/basics";
import { causeFirst, counted, oneLine } from "../../ui/text";

interface Need {
  key: string;
  state: string;
  what: ReactNode;
  why: string;
  button: ReactNode;
}

const SHOWN = 20;

/** Everything that waits for somebody, each with the button that helps. */
export function Needs() {
  const me = useMe();
  const quarantined = useQuery({ ...pins(true), enabled: me.admin });
  const all = useQuery(servers());
  const waiting = useQuery({ ...approvals(), enabled: me.admin });
  const well = useQuery(health());
  const restart = useMutation({
    mutationFn: (id: string) => whole(api.POST("/api/v1/servers/{server_id}/restart", { params: { path: { server_id: id } } })),
    onSuccess: (answer) => toast(answer.message, "good"),
    onError: (error) => toast(error.message, "bad"),
    onSettled: () => queryClient.invalidateQueries({ queryKey: ["servers"] }),
  });

  const needs: Need[] = [];
  for (const one of quarantined.data?.pins ?? [])
    needs.push({
      key: `pin ${one.tool_id}`,
      state: "quarantined",
      what: oneLine(one.tool_id, 60),
      why: `its definition changed: ${oneLine((one.reasons ?? []).join("; ") || (one.change ?? "changed"), 140)}`,
      button: (
        <Link className="button primary" to="/ui/tools/$toolId" params={{ toolId: one.tool_id }} search={{ tab: "pin" }}>
          Look at the change
        </Link>
      ),
    });
  for (const one of waiting.data?.approvals ?? [])
    needs.push({
      key: `approval ${one.approval_id}`,
      state: "waits",
      what: `“${oneLine(one.task, 80)}”`,
      why: `${oneLine(one.principal, 30)} needs a server that no rule allows: ${oneLine(one.servers.join(", "), 120)}`,
      button: (
        <Link className="button primary" to="/ui/discover" search={{ task: one.task }}>
          Decide
        </Link>
      ),
    });
  for (const one of all.data?.servers ?? []) {
    // One that is being started again after it failed needs a look until it is up.
    if (one.state === "failed" || one.state === "down" || (one.state === "starting" && one.last_error !== null))
      needs.push({
        key: `server ${one.server_id}`,
        state: one.state,
        what: (
          <Link to="/ui/servers/$serverId" params={{ serverId: one.server_id }}>
            {oneLine(one.server_id, 60)}
          </Link>
        ),
        why: oneLine(causeFirst(one.last_error ?? "it does not answer"), 160),
        button: me.admin && one.kind ? (
          <Button busy={restart.isPending && restart.variables === one.server_id} onClick={() => restart.mutate(one.server_id)}>
            Restart
          </Button>
        ) : (
          <Link className="button" to="/ui/servers/$serverId" params={{ serverId: one.server_id }}>
            Look
          </Link>
        ),
      });
    else if (one.circuit === "open")
      needs.push({
        key: `circuit ${one.server_id}`,
        state: "open",
        what: oneLine(one.server_id, 60),
        why: "it kept failing, and is left alone for a while",
        button: (
          <Link className="button" to="/ui/calls" search={{ server_id: one.server_id }}>
            Its calls
          </Link>
        ),
      });
  }
  const ids = new Set((all.data?.servers ?? []).map((one) => one.server_id));
  for (const name of (well.data?.unwell ?? []).filter((one) => !ids.has(one)))
    needs.push({
      key: `part ${name}`,
      state: "degraded",
      what: oneLine(name, 60),
      why: oneLine(String((well.data?.checks[name] as { reason?: string } | undefined)?.reason ?? "it is not well"), 160),
      button: (
        <Link className="button" to="/ui/health">
          Look
        </Link>
      ),
    });

  if (needs.length === 0) return null;
  return (
    <Card title={`${counted(needs.length, "thing")} ${needs.length === 1 ? "needs" : "need"} you`} className="needs">
      <ul className="rows">
        {needs.slice(0, SHOWN).map((need) => (
          <li key={need.key}>
            <State of={need.state} fallback="warn" />
            <span className="grow">
              <strong>{need.what}</strong> <span className="dim">{need.why}</span>
            </span>
            {need.button}
          </li>
        ))}
      </ul>
      {needs.length > SHOWN && <p className="dim">and {needs.length - SHOWN} more, on the pages of servers and tools</p>}
    </Card>
  );
}
