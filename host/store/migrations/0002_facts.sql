-- What was found out about the outside world by trying, such as what a host version does.
CREATE TABLE facts (
    fact TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
