import { Empty, StrangersText } from "./basics";
import { JsonTree } from "./JsonTree";
import { Tabs, type Tab } from "./Tabs";
import { bytes, visible } from "./text";

interface Block {
  type?: unknown;
  text?: unknown;
  data?: unknown;
  mimeType?: unknown;
  uri?: unknown;
  name?: unknown;
  description?: unknown;
  resource?: { uri?: unknown; text?: unknown; blob?: unknown; mimeType?: unknown };
}

const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"]);
const SOUNDS = /^audio\/[a-z0-9.+-]+$/;
const BASE64 = /^[A-Za-z0-9+/=\s]*$/;

/** What a tool answered: its blocks as what they are, and its structured content as a tree. */
export function Content({ blocks, structured }: { blocks: unknown[]; structured: unknown }) {
  const parsed = blocks.length === 1 ? asJson(blocks[0] as Block) : undefined;
  const tree = structured ?? parsed;
  const tabs: Tab[] = [
    { id: "content", title: "Content", content: () => <Blocks blocks={blocks as Block[]} /> },
    ...(tree === undefined || tree === null
      ? []
      : [{ id: "json", title: "JSON", content: () => <JsonTree value={tree} label="structured content" /> }]),
    { id: "raw", title: "Raw", content: () => <StrangersText text={JSON.stringify({ content: blocks, structured_content: structured }, null, 2)} /> },
  ];
  return <Tabs label="Result" tabs={tabs} />;
}

function asJson(block: Block | undefined): unknown {
  if (block?.type !== "text" || typeof block.text !== "string" || !/^\s*[[{]/.test(block.text)) return undefined;
  try {
    return JSON.parse(block.text);
  } catch {
    return undefined;
  }
}

function Blocks({ blocks }: { blocks: Block[] }) {
  if (blocks.length === 0) return <Empty title="The tool answered with nothing" />;
  return (
    <div className="blocks">
      {blocks.map((block, index) => (
        <OneBlock key={index} block={block} />
      ))}
    </div>
  );
}

function OneBlock({ block }: { block: Block }) {
  const kind = typeof block.mimeType === "string" ? block.mimeType : "";
  const body = typeof block.data === "string" && BASE64.test(block.data) ? block.data : null;
  if (block.type === "text" && typeof block.text === "string") return <StrangersText text={block.text} />;
  if (block.type === "image" && body !== null && IMAGES.has(kind))
    return <img className="picture" src={`data:${kind};base64,${body}`} alt={`${kind} from the tool`} />;
  if (block.type === "audio" && body !== null && SOUNDS.test(kind))
    return <audio controls src={`data:${kind};base64,${body}`} aria-label={`${kind} from the tool`} />;
  if (block.type === "resource_link")
    return (
      <div className="resource">
        <strong>{visible(String(block.name ?? "resource"))}</strong> <code>{visible(String(block.uri ?? ""))}</code>
        {typeof block.description === "string" && <p className="dim">{visible(block.description)}</p>}
      </div>
    );
  if (block.type === "resource" && block.resource !== undefined) {
    const { uri, text, blob, mimeType } = block.resource;
    return (
      <div className="resource">
        <code>{visible(String(uri ?? ""))}</code>
        {typeof text === "string" && <StrangersText text={text} />}
        {typeof blob === "string" && (
          <p className="dim">
            {visible(String(mimeType ?? "binary"))}, {bytes(Math.floor((blob.length * 3) / 4))}
          </p>
        )}
      </div>
    );
  }
  return <JsonTree value={block} label="content block" />;
}
