-- Exclusive rights of plugins. A row stays when its right ends: epochs have to grow.
CREATE TABLE plugin_leases (
    tenant  TEXT    NOT NULL,
    plugin  TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    epoch   INTEGER NOT NULL,
    expires INTEGER NOT NULL, -- milliseconds since the Unix epoch
    PRIMARY KEY (tenant, plugin, name)
) STRICT, WITHOUT ROWID;
