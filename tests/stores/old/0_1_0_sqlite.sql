-- The tables as release 0.1.0 made them.
CREATE TABLE bodies (
  hash VARCHAR(64) NOT NULL,
  content BLOB NOT NULL,
  size BIGINT NOT NULL,
  last_call VARCHAR(32) NOT NULL,
  PRIMARY KEY (hash)
);
CREATE INDEX bodies_by_last_call ON bodies (last_call);
CREATE TABLE cached (
  "key" VARCHAR(64) NOT NULL,
  tool_id VARCHAR(64) NOT NULL,
  server_id VARCHAR(128) NOT NULL,
  result BLOB NOT NULL,
  stored_at FLOAT NOT NULL,
  fresh_until FLOAT NOT NULL,
  stale_until FLOAT NOT NULL,
  PRIMARY KEY ("key")
);
CREATE INDEX cached_by_stale_until ON cached (stale_until);
CREATE TABLE calls (
  call_id VARCHAR(32) NOT NULL,
  request_id VARCHAR(128) NOT NULL,
  at_ms BIGINT NOT NULL,
  principal TEXT NOT NULL,
  tool_id VARCHAR(64) NOT NULL,
  server_id VARCHAR(128) NOT NULL,
  name TEXT NOT NULL,
  definition_hash VARCHAR(64) NOT NULL,
  outcome VARCHAR(32) NOT NULL,
  duration_ms FLOAT NOT NULL,
  cache VARCHAR(8),
  error TEXT,
  arguments TEXT,
  arguments_body VARCHAR(64),
  result TEXT,
  result_body VARCHAR(64),
  redacted INTEGER NOT NULL,
  PRIMARY KEY (call_id)
);
CREATE INDEX calls_by_tool ON calls (tool_id, call_id);
CREATE TABLE catalogs (
  source VARCHAR(255) NOT NULL,
  fetched_at_ms BIGINT NOT NULL,
  content BLOB NOT NULL,
  PRIMARY KEY (source)
);
CREATE TABLE events (
  seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  type VARCHAR(64) NOT NULL,
  data TEXT NOT NULL,
  timestamp VARCHAR(32) NOT NULL
);
CREATE TABLE features (
  server_id VARCHAR(128) NOT NULL,
  kind VARCHAR(16) NOT NULL,
  content TEXT NOT NULL,
  PRIMARY KEY (server_id, kind)
);
CREATE TABLE fixes (
  fix_id VARCHAR(32) NOT NULL,
  pattern_id VARCHAR(32) NOT NULL,
  tool_id VARCHAR(64) NOT NULL,
  content TEXT NOT NULL,
  PRIMARY KEY (fix_id)
);
CREATE INDEX fixes_by_pattern ON fixes (pattern_id);
CREATE TABLE installs (
  server_id VARCHAR(128) NOT NULL,
  name VARCHAR(255) NOT NULL,
  record TEXT NOT NULL,
  installed_at VARCHAR(32) NOT NULL,
  PRIMARY KEY (server_id)
);
CREATE TABLE keys (
  key_id VARCHAR(12) NOT NULL,
  name VARCHAR(64) NOT NULL,
  hash VARCHAR(64) NOT NULL,
  scopes TEXT NOT NULL,
  created_at VARCHAR(32) NOT NULL,
  expires_at VARCHAR(32),
  revoked_at VARCHAR(32),
  PRIMARY KEY (key_id)
);
CREATE TABLE patterns (
  pattern_id VARCHAR(32) NOT NULL,
  template TEXT NOT NULL,
  category VARCHAR(32) NOT NULL,
  count BIGINT NOT NULL,
  first_seen VARCHAR(32) NOT NULL,
  last_seen VARCHAR(32) NOT NULL,
  seen_by TEXT NOT NULL,
  PRIMARY KEY (pattern_id)
);
CREATE TABLE pins (
  server_id VARCHAR(128) NOT NULL,
  name VARCHAR(256) NOT NULL,
  definition TEXT NOT NULL,
  definition_hash VARCHAR(64) NOT NULL,
  pinned_at VARCHAR(32) NOT NULL,
  pinned_by TEXT NOT NULL,
  held TEXT,
  PRIMARY KEY (server_id, name)
);
CREATE TABLE scores (
  tool_id VARCHAR(64) NOT NULL,
  state TEXT NOT NULL,
  PRIMARY KEY (tool_id)
);
CREATE TABLE servers (
  server_id VARCHAR(128) NOT NULL,
  spec TEXT NOT NULL,
  attached_at VARCHAR(32) NOT NULL,
  PRIMARY KEY (server_id)
);
CREATE TABLE tools (
  tool_id VARCHAR(64) NOT NULL,
  server_id VARCHAR(128) NOT NULL,
  name TEXT NOT NULL,
  definition TEXT NOT NULL,
  definition_hash VARCHAR(64) NOT NULL,
  first_seen VARCHAR(32) NOT NULL,
  PRIMARY KEY (tool_id)
);
CREATE INDEX tools_by_server ON tools (server_id);
CREATE TABLE uses (
  use_id VARCHAR(32) NOT NULL,
  principal TEXT NOT NULL,
  tool_id VARCHAR(64) NOT NULL,
  task TEXT NOT NULL,
  at FLOAT NOT NULL,
  PRIMARY KEY (use_id)
);
CREATE INDEX uses_by_tool ON uses (tool_id);
CREATE TABLE vectors (
  hash VARCHAR(32) NOT NULL,
  model VARCHAR(64) NOT NULL,
  vector BLOB NOT NULL,
  PRIMARY KEY (hash, model)
);
