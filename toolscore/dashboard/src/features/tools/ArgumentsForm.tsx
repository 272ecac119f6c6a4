import Form from "@rjsf/core";
import type { RJSFSchema, UiSchema } from "@rjsf/utils";
import { Component, useMemo, useState, type ReactNode } from "react";
import { Button, Failure } from "../../ui/basics";
import { Code } from "../../ui/Code";
import { validator } from "./validator";

export type Arguments = Record<string, unknown>;

const MANY_PROPERTIES = 60;
const UI: UiSchema = { "ui:submitButtonOptions": { norender: true } };
const LONG_TEXTS = new Set(["code", "sql", "query", "content", "text", "body", "message", "script", "prompt", "html", "markdown"]);

/** A tool's arguments as a form made of its schema, or as JSON. */
export function ArgumentsForm({
  schema,
  value,
  onChange,
  onRun,
  busy,
}: {
  schema: unknown;
  value: Arguments;
  onChange: (value: Arguments) => void;
  onRun: () => void;
  busy: boolean;
}) {
  const usable = useMemo(() => formOf(schema), [schema]);
  const [asJson, setAsJson] = useState(usable === null);
  const [text, setText] = useState<string | null>(null);
  const parsed = text === null ? { value } : parse(text);
  const shown = text ?? JSON.stringify(value, null, 2);
  const uiSchema = useMemo(() => uiOf(usable), [usable]);
  return (
    <div className="arguments">
      <div className="actions">
        {usable !== null && (
          <Button
            look="quiet"
            aria-pressed={asJson}
            onClick={() => {
              setText(null);
              setAsJson(!asJson);
            }}
          >
            {asJson ? "As a form" : "As JSON"}
          </Button>
        )}
      </div>
      {asJson || usable === null ? (
        <>
          <Code
            label="Arguments as JSON"
            language="json"
            value={shown}
            onChange={(now) => {
              setText(now);
              const read = parse(now);
              if (read.value !== undefined) onChange(read.value);
            }}
            onRun={onRun}
          />
          {parsed.problem !== undefined && <p className="problem" role="alert">{parsed.problem}</p>}
          <Button look="primary" busy={busy} disabled={parsed.problem !== undefined} onClick={onRun}>
            Run
          </Button>
        </>
      ) : (
        <Guard fallback={() => setAsJson(true)}>
          <Form
            schema={usable}
            uiSchema={uiSchema}
            validator={validator}
            formData={value}
            onChange={({ formData }) => onChange((formData ?? {}) as Arguments)}
            onSubmit={onRun}
            onError={() => undefined} // the fields say it
            showErrorList={false}
            noHtml5Validate
            focusOnFirstError
            idPrefix="argument"
          >
            <Button look="primary" type="submit" busy={busy}>
              Run
            </Button>
          </Form>
        </Guard>
      )}
    </div>
  );
}

function parse(text: string): { value?: Arguments; problem?: string } {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return { problem: "Arguments are an object: { … }" };
    return { value: value as Arguments };
  } catch (exc) {
    return { problem: exc instanceof Error ? exc.message : "This is not JSON" };
  }
}

/** The schema for a form; `null`: it is better written as JSON. */
function formOf(schema: unknown): RJSFSchema | null {
  if (typeof schema !== "object" || schema === null) return null;
  const { $schema: _dialect, $id: _id, title: _title, description: _description, ...rest } = schema as RJSFSchema;
  const properties = Object.keys(rest.properties ?? {});
  if (rest.type !== undefined && rest.type !== "object") return null;
  if (properties.length > MANY_PROPERTIES) return null;
  return withoutNull({ type: "object", ...rest });
}

/** An optional argument as what it is when it is given: the choice of `null` is to leave it out. */
function withoutNull(schema: RJSFSchema): RJSFSchema {
  const properties = Object.entries(schema.properties ?? {}).map(([name, one]) => {
    if (typeof one === "boolean") return [name, one] as const;
    const { anyOf, default: preset, ...rest } = one;
    const given = (anyOf ?? []).filter((way) => typeof way === "object" && way.type !== "null");
    if (anyOf === undefined || given.length !== 1 || given.length === anyOf.length) return [name, one] as const;
    return [name, { ...(given[0] as RJSFSchema), ...rest, ...(preset === null || preset === undefined ? {} : { default: preset }) }] as const;
  });
  return { ...schema, ...(schema.properties === undefined ? {} : { properties: Object.fromEntries(properties) }) };
}

function uiOf(schema: RJSFSchema | null): UiSchema {
  const ui: UiSchema = { ...UI };
  for (const [name, one] of Object.entries(schema?.properties ?? {})) {
    if (typeof one === "boolean") continue;
    const plain = one.type === "string" && one.enum === undefined && one.format === undefined;
    if (plain && LONG_TEXTS.has(name.toLowerCase())) ui[name] = { "ui:widget": "textarea", "ui:options": { rows: 5 } };
  }
  return ui;
}

/** A schema that the form cannot show is shown as JSON. */
class Guard extends Component<{ fallback: () => void; children: ReactNode }, { error: unknown }> {
  override state = { error: null as unknown };

  static getDerivedStateFromError(error: unknown): { error: unknown } {
    return { error };
  }

  override render(): ReactNode {
    if (this.state.error === null) return this.props.children;
    return (
      <>
        <Failure error={new Error("This schema is more than the form can show.")} />
        <Button onClick={this.props.fallback}>Write the arguments as JSON</Button>
      </>
    );
  }
}
