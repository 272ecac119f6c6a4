#!/usr/bin/env node
// A stdio server with one tool, which says the names of its environment variables.
const ANSWERS = {
  initialize: () => ({ protocolVersion: '2025-06-18', capabilities: { tools: {} }, serverInfo: { name: 'plain', version: '1' } }),
  'tools/list': () => ({ tools: [{ name: 'hi', inputSchema: { type: 'object' } }] }),
  'tools/call': () => ({ content: [{ type: 'text', text: JSON.stringify(Object.keys(process.env).sort()) }] }),
}
require('readline').createInterface({ input: process.stdin }).on('line', line => {
  const { id, method } = JSON.parse(line)
  if (id === undefined) return
  const answer = ANSWERS[method]
    ? { result: ANSWERS[method]() } : { error: { code: -32601, message: 'method not found' } }
  console.log(JSON.stringify({ jsonrpc: '2.0', id, ...answer }))
})
