CREATE TABLE vms (
  id      TEXT PRIMARY KEY,
  name    TEXT NOT NULL UNIQUE,
  intent  TEXT NOT NULL,
  uid     INTEGER,             -- of its hypervisor, where the daemon is root
  created INTEGER NOT NULL,    -- ns since 1970
  record  TEXT NOT NULL        -- JSON
) STRICT;
CREATE INDEX vms_intent ON vms (intent);
CREATE UNIQUE INDEX vms_uid ON vms (uid) WHERE uid IS NOT NULL;

CREATE TABLE events (
  cursor  INTEGER PRIMARY KEY AUTOINCREMENT,
  at      INTEGER NOT NULL,    -- ns since 1970
  kind    TEXT NOT NULL,
  vm      TEXT NOT NULL,
  name    TEXT NOT NULL,
  message TEXT NOT NULL,
  data    TEXT NOT NULL        -- JSON object
) STRICT;
