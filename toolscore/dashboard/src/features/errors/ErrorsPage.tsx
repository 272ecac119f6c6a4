import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";
import { api, whole, type Schemas } from "../../api/client";
import { errors as errorsQuery, queryClient } from "../../api/queries";
import { Ago, Asked, Badge, Button, Card, Empty, Failure, Field, Meter, Page, toast } from "../../ui/basics";
import { Dialog } from "../../ui/Dialog";
import { counted, number, oneLine, visible } from "../../ui/text";

type Pattern = Schemas["PatternShape"];
type Fix = Schemas["KnownFix"];

const refresh = (): Promise<void> => queryClient.invalidateQueries({ queryKey: ["errors"] });

/** What goes wrong, again and again, and what helped. */
export function ErrorsPage() {
  const asked = useQuery({ ...errorsQuery(), refetchOnMount: "always" });
  const [writing, setWriting] = useState<string | null>(null);
  return (
    <Page
      title="Errors"
      lead="Failures as patterns. What helped callers before comes back with the error, if it helps often enough."
      actions={<Button onClick={() => setWriting("")}>Write a fix</Button>}
    >
      <Asked query={asked}>
        {({ patterns }) =>
          patterns.length === 0 ? (
            <Empty title="Nothing has failed yet" />
          ) : (
            patterns.map((one) => <PatternCard key={one.pattern_id} pattern={one} onWrite={() => setWriting(one.template)} />)
          )
        }
      </Asked>
      {writing !== null && <WriteFix message={writing} onClose={() => setWriting(null)} />}
    </Page>
  );
}

function PatternCard({ pattern, onWrite }: { pattern: Pattern; onWrite: () => void }) {
  return (
    <Card
      title={<code className="template">{oneLine(pattern.template, 300)}</code>}
      actions={
        <Button look="quiet" onClick={onWrite}>
          Write a fix
        </Button>
      }
    >
      <p className="badges">
        <Badge>{pattern.category.replaceAll("_", " ")}</Badge>
        <span className="dim">
          {counted(pattern.count, "time")}, last <Ago at={pattern.last_seen} />
        </span>
      </p>
      {pattern.fixes.length === 0 ? (
        <p className="dim">Nothing is known to help.</p>
      ) : (
        <ul className="rows">
          {pattern.fixes.map((fix) => (
            <FixRow key={fix.fix_id} fix={fix} />
          ))}
        </ul>
      )}
    </Card>
  );
}

function FixRow({ fix }: { fix: Fix }) {
  const params = { params: { path: { fix_id: fix.fix_id } } };
  const act = useMutation({
    mutationFn: (what: "enable" | "disable" | "remove"): Promise<{ data: { fix_id: string } }> => {
      if (what === "enable") return whole(api.POST("/api/v1/errors/fixes/{fix_id}/enable", params));
      if (what === "disable") return whole(api.POST("/api/v1/errors/fixes/{fix_id}/disable", params));
      return whole(api.DELETE("/api/v1/errors/fixes/{fix_id}", params));
    },
    onError: (error) => toast(error.message, "bad"),
    onSettled: refresh,
  });
  return (
    <li>
      <span className="grow">
        <strong>{visible(fix.text)}</strong>{" "}
        <span className="dim">
          {fix.by_hand ? "written by hand" : `learned; shown ${number(fix.shown)} times, right ${number(fix.right)}`}
          {fix.tool_id !== null && (
            <>
              , for{" "}
              <Link to="/ui/tools/$toolId" params={{ toolId: fix.tool_id }}>
                {oneLine(fix.tool_id, 60)}
              </Link>
            </>
          )}
        </span>
      </span>
      {fix.off ? <Badge>off</Badge> : fix.is_shown ? <Badge tone="good">callers are told</Badge> : <Badge>not sure enough to be told</Badge>}
      <Meter value={fix.confidence} label="how much it helps" />
      <Button busy={act.isPending} onClick={() => act.mutate(fix.off ? "enable" : "disable")}>
        {fix.off ? "Switch on" : "Switch off"}
      </Button>
      {fix.by_hand && (
        <Button look="quiet" busy={act.isPending} onClick={() => act.mutate("remove")}>
          Delete
        </Button>
      )}
    </li>
  );
}

function WriteFix({ message, onClose }: { message: string; onClose: () => void }) {
  const [error, setError] = useState(message);
  const [text, setText] = useState("");
  const [tool, setTool] = useState("");
  const write = useMutation({
    mutationFn: () => whole(api.POST("/api/v1/errors/fixes", { body: { message: error, text, tool_id: tool.trim() || null } })),
    onSuccess: (answer) => {
      toast(answer.message, "good");
      onClose();
    },
    onSettled: refresh,
  });
  return (
    <Dialog title="Write a fix" lead="It comes back with every such error from now on." open onClose={onClose}>
      <form
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          write.mutate();
        }}
      >
        <Field label="The error's message">{(id) => <textarea id={id} required rows={3} value={error} onChange={(event) => setError(event.target.value)} />}</Field>
        <Field label="What helps">{(id) => <textarea id={id} required rows={3} value={text} placeholder="list the tables first" onChange={(event) => setText(event.target.value)} />}</Field>
        <Field label="Only for this tool" hint="Left empty: for all.">
          {(id) => <input id={id} value={tool} placeholder="db__query" spellCheck={false} onChange={(event) => setTool(event.target.value)} />}
        </Field>
        {write.error !== null && <Failure error={write.error} />}
        <Button look="primary" type="submit" busy={write.isPending}>
          Write it
        </Button>
      </form>
    </Dialog>
  );
}
