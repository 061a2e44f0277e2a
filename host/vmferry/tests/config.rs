//! What a configuration says, and what an operator is told about a wrong one.

use expect_test::{Expect, expect};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tempfile::TempDir;
use vmferry::config::job::Overlap;
use vmferry::config::{self, Config, Surroundings};
use vmferry::problem::Problem;
use vmferry_engine::{ChainLimits, SnapshotMode};
use vmferry_xapi::StreamNetwork;

const GOOD: &str = r#"
[pool.prod]
url = "https://xen1.example.org"
username = "root"
password_file = "secrets/prod"
certificate_sha256 = "3F:3f:3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f"

[pool.dr]
url = "https://root:password%23@xen2.example.org"

[store]
path = "state"

[job.erp]
select = { pool = "prod", tags = ["erp"], power_state = ["Running"], exclude = { tags = ["scratch"] } }
targets = [{ name = "dr", pool = "dr", sr = "5AAF86CA-0000-4000-8000-000000000001", networks = { lan = "none" } }]
schedule = { plugin = "schedule-interval", with = { every = "10m" } }
retention = { plugin = "retain-count", with = { keep = 3 } }
notify = [{ plugin = "notify-webhook", on = ["failed"], with = { url = "https://ops.example.org/hook" } }]

[plugin.notify-webhook]
grants = { http = ["https://ops.example.org"], sign = ["hook"] }
limits = { timeout = "5s", memory = "16MiB" }

[key.hook]
secret_env = "HOOK_KEY"

[plugin.example-target-folder]
grants = { folders = ["/mnt/backup"], seal = ["backup"], lock = true }
limits = { stall = "5m", held = "32MiB" }

[seal_key.backup]
secret_env = "SEAL_KEY"
"#;

/// A folder with a configuration and what belongs to it.
struct Folder(TempDir);

impl Folder {
    fn with(main: &str) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        folder.write("vmferry.toml", main);
        folder.mode("vmferry.toml", 0o600);
        folder.write("secrets/prod", "hunter2\n");
        folder.mode("secrets/prod", 0o600);
        folder
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a file in the folder")).expect("a folder is made");
        std::fs::write(path, text).expect("a file is written");
        self
    }

    fn mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.0.path().join(name), std::fs::Permissions::from_mode(mode))
            .expect("a mode is set");
    }

    fn load(&self) -> Result<Config, Vec<Problem>> {
        let environment = |name: &str| match name {
            "HOOK_KEY" => Some("key material".to_owned()),
            "SEAL_KEY" => Some("0f".repeat(32)),
            "SHORT_KEY" => Some("0f".repeat(31)),
            _ => None,
        };
        let bundled = ["example-target-folder", "notify-webhook", "retain-count", "schedule-interval"];
        let surroundings = Surroundings { environment: &environment, bundled: &bundled };
        config::load(&self.0.path().join("vmferry.toml"), &surroundings)
    }

    fn text(&self, problems: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
        let lines: String = problems.into_iter().map(|problem| format!("{problem}\n")).collect();
        lines.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// The complaints about a configuration.
fn check(main: &str, expected: Expect) {
    let folder = Folder::with(main);
    let problems = folder.load().expect_err("the configuration is wrong");
    expected.assert_eq(&folder.text(problems));
}

/// The complaints about the good configuration with one text replaced.
fn check_with(text: &str, replacement: &str, expected: Expect) {
    assert!(GOOD.contains(text), "{text} is not in the good configuration");
    check(&GOOD.replacen(text, replacement, 1), expected);
}

#[test]
fn a_good_configuration_says_what_it_says() {
    let config = Folder::with(GOOD).load().unwrap();
    let prod = &config.pools["prod"];
    assert_eq!((prod.endpoint.to_string().as_str(), prod.username.as_str()), ("https://xen1.example.org", "root"));
    let dr = &config.pools["dr"];
    assert_eq!((dr.endpoint.to_string().as_str(), dr.username.as_str()), ("https://xen2.example.org", "root"));

    let job = &config.jobs["erp"];
    assert_eq!((job.select.pool.as_str(), job.select.tags.as_slice()), ("prod", ["erp".to_owned()].as_slice()));
    assert_eq!(job.select.exclude_tags, ["scratch"]);
    assert_eq!(job.targets[0].srs, ["5aaf86ca-0000-4000-8000-000000000001"]);
    assert_eq!(job.targets[0].networks["lan"], "none");
    assert_eq!(job.schedule.as_ref().unwrap().with["every"], "10m");
    assert_eq!(job.retention.as_ref().unwrap().with["keep"], 3);
    assert_eq!(job.notify[0].on, ["failed"]);
    assert!(job.digests);
    assert_eq!(job.overlap, Overlap::Skip);

    let plugin = &config.plugins["notify-webhook"];
    assert_eq!(plugin.limits.timeout, Some(Duration::from_secs(5)));
    assert_eq!(plugin.limits.memory, Some(16 << 20));
    assert_eq!(config.keys["hook"].reveal(), "key material");
    let target = &config.plugins["example-target-folder"];
    assert_eq!(target.grants.folders, ["/mnt/backup"]);
    assert!(target.grants.lock && target.grants.seal == ["backup"]);
    assert_eq!((target.limits.stall, target.limits.held), (Some(Duration::from_secs(300)), Some(32 << 20)));
    assert!(config.seal_keys.contains_key("backup"));
    assert!(config.store.ends_with("state"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn how_disks_are_read_and_how_fast_stands_in_the_job_and_the_link() {
    use vmferry_engine::{Nbd, Reading};
    let text = GOOD.replacen(
        "[job.erp]\n",
        "[link.wan]\nlimit = \"20MiB\"\n\n[job.erp]\n\
         read = { nbd = \"always\", connections = 4, depth = 2, request = \"1MiB\", cbt = \"enable\" }\n\
         limit = \"none\"\n\
         limit_windows = [{ days = [\"mon\", \"fri\"], from = \"08:00\", to = \"18:00\", limit = \"10MiB\" }]\n",
        1,
    );
    let text = text.replacen("name = \"dr\",", "name = \"dr\", required = false, link = \"wan\",", 1);
    let config = Folder::with(&text).load().unwrap();
    let job = &config.jobs["erp"];
    let pace = vmferry_engine::Pace { depth: 2, request_size: 1 << 20 };
    assert_eq!(job.reading, Reading { nbd: Nbd::Always, connections: 4, pace, enable_cbt: true });
    assert_eq!((job.limit.usual, job.limit.windows.len()), (None, 1));
    assert!(job.throttle.is_some());
    assert!(!job.targets[0].required);
    assert_eq!(job.targets[0].throttles.len(), 1, "the link's");
    assert_eq!(config.links["wan"].usual, Some(20 << 20));
}

#[test]
fn wrong_ways_and_times_are_told() {
    let job = |line: &str| GOOD.replacen("[job.erp]\n", &format!("[job.erp]\n{line}\n"), 1);
    for (line, words) in [
        ("read = { nbd = \"sometimes\" }", &["sometimes", "auto"][..]),
        ("read = { connections = 17 }", &["17", "1 to 16"]),
        ("read = { request = \"1000\" }", &["request", "64KiB"]),
        ("limit = \"fast\"", &["fast", "64MiB"]),
        ("limit_windows = [{ from = \"8 o'clock\", to = \"18:00\", limit = \"1MiB\" }]", &["8 o'clock", "08:00"]),
        ("limit_windows = [{ days = [\"mo\"], from = \"08:00\", to = \"18:00\", limit = 0 }]", &["mo", "mon"]),
        ("limit_windows = [{ from = \"08:00\", to = \"18:00\" }]", &["limit"]),
    ] {
        let folder = Folder::with(&job(line));
        let told = folder.text(folder.load().expect_err(line));
        assert!(words.iter().all(|word| told.contains(word)), "{line}: {told}");
    }
    let folder = Folder::with(&GOOD.replacen("name = \"dr\",", "name = \"dr\", link = \"wan\",", 1));
    assert!(folder.text(folder.load().expect_err("no such link")).contains("no link `wan`"));
}

#[test]
fn secrets_do_not_print() {
    let folder = Folder::with(GOOD);
    let printed = format!("{:?}", folder.load().unwrap());
    for secret in ["hunter2", "password#", "password%23", "key material"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn unknown_keys_are_answered_with_the_nearest_right_name() {
    check_with(
        "username =",
        "usrname =",
        expect![[r#"
            error: pool.prod: `username` is missing
              where: vmferry.toml:2:7
              remedy: add `username = "root"`
            error: pool.prod: unknown key `usrname`
              where: vmferry.toml:4:1
              remedy: did you mean `username`? known here: `url`, `username`, `password`, `password_file`, `password_env`, `certificate_sha256`, `ca_file`, `network`
        "#]],
    );
    check_with(
        "[store]",
        "[stor]",
        expect![[r#"
            error: unknown section `stor`
              where: vmferry.toml:11:2
              remedy: did you mean `store`? known here: `pool`, `job`, `plugin`, `link`, `key`, `seal_key`, `store`
        "#]],
    );
    check_with(
        "networks = {",
        "network = {",
        expect![[r#"
            error: job.erp.targets[0]: unknown key `network`
              where: vmferry.toml:16:85
              remedy: did you mean `networks`? known here: `name`, `pool`, `sr`, `srs`, `networks`, `required`, `link`
        "#]],
    );
    check_with(
        "secret_env",
        "env",
        expect![[r#"
        error: key.hook: `secret_file` is missing
          where: vmferry.toml:25:6
          remedy: add `secret_file = "secrets/key"`
        error: key.hook: unknown key `env`
          where: vmferry.toml:26:1
          remedy: known here: `secret`, `secret_file`, `secret_env`
    "#]],
    );
}

#[test]
fn a_wrong_type_names_the_key_and_what_was_expected() {
    check_with(
        "tags = [\"erp\"]",
        "tags = \"erp\"",
        expect![[r#"
        error: job.erp.select.tags: expected a list of strings, found a string
          where: vmferry.toml:15:34
    "#]],
    );
    check_with(
        "tags = [\"erp\"]",
        "tags = [\"erp\", 7]",
        expect![[r#"
        error: job.erp.select.tags[1]: expected a string, found an integer
          where: vmferry.toml:15:42
    "#]],
    );
    check_with(
        "username = \"root\"",
        "username = true",
        expect![[r#"
        error: pool.prod.username: expected a string, found a boolean
          where: vmferry.toml:4:12
    "#]],
    );
    check_with(
        "with = { keep = 3 }",
        "with = 3",
        expect![[r#"
        error: job.erp.retention.with: expected a table, found an integer
          where: vmferry.toml:18:47
    "#]],
    );
    check_with(
        "path = \"state\"",
        "path = 1979-05-27",
        expect![[r#"
        error: store.path: expected a string, found a date
          where: vmferry.toml:12:8
    "#]],
    );
}

#[test]
fn a_pool_may_name_a_network_and_a_target_several_srs() {
    let text = GOOD.replacen("[pool.prod]\n", "[pool.prod]\nnetwork = \"storage\"\n", 1).replacen(
        "sr = \"5AAF86CA-0000-4000-8000-000000000001\"",
        "srs = [\"5AAF86CA-0000-4000-8000-000000000001\", \"5aaf86ca-0000-4000-8000-000000000002\"]",
        1,
    );
    let config = Folder::with(&text).load().unwrap();
    let network = |pool: &str| config.pools[pool].endpoint.stream_network().clone();
    assert_eq!(network("prod"), StreamNetwork::Named("storage".to_owned()));
    assert_eq!(network("dr"), StreamNetwork::OfPool, "what the pool itself says counts");
    let srs = &config.jobs["erp"].targets[0].srs;
    assert_eq!(srs, &["5aaf86ca-0000-4000-8000-000000000001", "5aaf86ca-0000-4000-8000-000000000002"]);
}

#[test]
fn a_wrong_value_is_answered_with_the_right_form() {
    check_with(
        "[job.erp]",
        "[job.erp]\nintegrity = \"digests\"",
        expect![[r#"
        error: job.erp.integrity: `digests` is not one of its values
          where: vmferry.toml:15:13
          remedy: did you mean `digest`? known here: `digest`, `structure`
    "#]],
    );
    check_with(
        "5AAF86CA-",
        "sr-",
        expect![[r#"
        error: job.erp.targets[0].sr: `sr-0000-4000-8000-000000000001` is not a uuid
          where: vmferry.toml:16:45
          remedy: copy it from `xe vm-list` or `xe sr-list`, 36 characters
    "#]],
    );
    check_with(
        "sr = \"5AAF86CA-0000-4000-8000-000000000001\"",
        "sr = \"5AAF86CA-0000-4000-8000-000000000001\", srs = [\"5AAF86CA-0000-4000-8000-000000000002\"]",
        expect![[r#"
            error: job.erp.targets[0]: `sr` and `srs` both say where replicas go
              where: vmferry.toml:16:12
              remedy: keep `sr` for one storage repository, or `srs` for several of which each replica is on one
        "#]],
    );
    check_with(
        "sr = \"5AAF86CA-0000-4000-8000-000000000001\"",
        "srs = []",
        expect![[r#"
        error: job.erp.targets[0]: `srs` names no storage repository
          where: vmferry.toml:16:12
          remedy: add the uuid of one, from `xe sr-list`
    "#]],
    );
    check_with(
        "sr = \"5AAF86CA-0000-4000-8000-000000000001\"",
        "srs = [\"5AAF86CA-0000-4000-8000-000000000001\", \"5aaf86ca-0000-4000-8000-000000000001\"]",
        expect![[r#"
            error: job.erp.targets[0].srs[1]: this storage repository is named already
              where: vmferry.toml:16:87
              remedy: name each once
        "#]],
    );
    check_with(
        "timeout = \"5s\"",
        "timeout = \"5 parsecs\"",
        expect![[r#"
        error: plugin.notify-webhook.limits.timeout: `5 parsecs` is not a span of time
          where: vmferry.toml:23:22
          remedy: write it like `30s`, `500ms` or `1h 30m`
    "#]],
    );
    check_with(
        "memory = \"16MiB\"",
        "memory = \"16MB\"",
        expect![[r#"
        error: plugin.notify-webhook.limits.memory: `16MB` is not a size
          where: vmferry.toml:23:37
          remedy: write it like `64MiB`, `512KiB` or `1GiB`, or as a number of bytes
    "#]],
    );
    check_with(
        "on = [\"failed\"]",
        "on = [\"faild\"]",
        expect![[r#"
        error: job.erp.notify[0].on[0]: `faild` is not an event
          where: vmferry.toml:19:46
          remedy: did you mean `failed`? known here: `started`, `succeeded`, `partial`, `failed`, `skipped`, `refused`, `plugin-failed`, `rpo-violated`
    "#]],
    );
    check_with(
        "3F:3f",
        "zz",
        expect![[r#"
        error: pool.prod.certificate_sha256: not a SHA-256 digest
          where: vmferry.toml:6:22
          remedy: give the SHA-256 of the host's certificate as 64 hexadecimal digits, colons allowed: openssl x509 -noout -fingerprint -sha256
    "#]],
    );
    check_with(
        "https://root:password%23@",
        "https://root:password#@",
        expect![[r#"
            error: pool.dr.url: not a URL (invalid port number); write https://host, and percent-encode special characters in user and password
              where: vmferry.toml:9:7
        "#]],
    );
    check_with(
        "tags = [\"erp\"], ",
        "",
        expect![[r#"
        error: job.erp.select: it selects no VM
          where: vmferry.toml:15:10
          remedy: add `tags = ["TAG"]` or `vms = ["UUID"]`
    "#]],
    );
}

#[test]
fn a_grant_that_is_no_server_is_refused() {
    check_with(
        "https://ops.example.org\"], sign",
        "ops.example.org\"], sign",
        expect![[r#"
        error: plugin.notify-webhook.grants.http[0]: `ops.example.org` is not a server: the scheme is missing; write `https://ops.example.org` or `http://10.0.0.7:8080`
          where: vmferry.toml:22:20
    "#]],
    );
}

#[test]
fn a_folder_is_granted_by_its_absolute_path() {
    check_with(
        "/mnt/backup",
        "backup",
        expect![[r#"
            error: plugin.example-target-folder.grants.folders[0]: a folder is granted by its absolute path: `/mnt/backup`
              where: vmferry.toml:29:23
        "#]],
    );
}

#[test]
fn a_seal_key_that_is_not_random_enough_is_refused() {
    check_with(
        "SEAL_KEY",
        "SHORT_KEY",
        expect![[r#"
        error: seal_key.backup: the key is not 64 hexadecimal digits
          where: vmferry.toml:32:11
          remedy: make one with `openssl rand -hex 32`, and keep a copy elsewhere: what it sealed is lost with it
    "#]],
    );
    check_with(
        "seal = [\"backup\"]",
        "seal = [\"bakcup\"]",
        expect![[r#"
            error: plugin.example-target-folder.grants.seal[0]: there is no seal_key `bakcup`
              where: vmferry.toml:29:47
              remedy: did you mean `backup`? known here: `backup`
        "#]],
    );
}

#[test]
fn a_credential_says_for_which_server_and_with_what() {
    let limits = "limits = { timeout = \"5s\", memory = \"16MiB\" }\n";
    let with = |credential: &str| format!("{limits}credentials = [{{ {credential} }}]\n");
    let server = |rest: &str| with(&format!("server = \"https://ops.example.org\", {rest}"));
    check_with(
        limits,
        &server(""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: it does not say what proves who is asking
          where: vmferry.toml:24:16
          remedy: add `access_key`, `secret_key_file` and `region`, or `user` and `password_file`, or `bearer_file`
    "#]],
    );
    check_with(
        limits,
        &with("bearer_env = \"HOOK_KEY\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: `server` is missing
          where: vmferry.toml:24:16
          remedy: add `server = "https://s3.example.org"`
    "#]],
    );
    check_with(
        limits,
        &server("user = \"me\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: `password_file` is missing
          where: vmferry.toml:24:16
          remedy: add `password_file = "secrets/store"`
    "#]],
    );
    check_with(
        limits,
        &server("user = \"m:e\", password = \"p\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: the user name has a colon, which would end it; the server would take the rest for the password
          where: vmferry.toml:24:16
          remedy: write it as the server gave it
    "#]],
    );
    check_with(
        limits,
        &server("access_key = \"AK\", secret_key_env = \"HOOK_KEY\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: `region` is missing
          where: vmferry.toml:24:16
          remedy: add `region = "us-east-1"`
    "#]],
    );
    check_with(
        limits,
        &server("bearer_env = \"HOOK_KEX\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0].bearer_env: the environment variable HOOK_KEX is not set
          where: vmferry.toml:24:67
          remedy: set it to the bearer token before the program starts
    "#]],
    );
    check_with(
        limits,
        &server("bearer = \"t\", user = \"me\", password = \"p\""),
        expect![[r#"
        error: plugin.notify-webhook.credentials[0]: unknown key `bearer`
          where: vmferry.toml:24:54
          remedy: did you mean `server`? known here: `server`, `user`, `password`, `password_file`, `password_env`
    "#]],
    );
    let aws = "access_key = \"AK\", secret_key_env = \"HOOK_KEY\", region = \"us-east-1\"";
    let config = Folder::with(&GOOD.replace(limits, &server(aws))).load().unwrap();
    let credential = &config.plugins["notify-webhook"].credentials[0];
    assert_eq!(credential.server().to_string(), "https://ops.example.org");
    assert!(!format!("{config:?}").contains("key material"));
}

#[test]
fn names_that_stand_for_nothing_are_answered_with_the_nearest_that_does() {
    check_with(
        "pool = \"prod\"",
        "pool = \"prd\"",
        expect![[r#"
        error: job.erp.select.pool: there is no pool `prd`
          where: vmferry.toml:15:19
          remedy: did you mean `prod`? known here: `dr`, `prod`
    "#]],
    );
    check_with(
        "plugin = \"schedule-interval\"",
        "plugin = \"schedule-intervall\"",
        expect![[r#"
        error: job.erp.schedule.plugin: there is no plugin `schedule-intervall`
          where: vmferry.toml:17:23
          remedy: did you mean `schedule-interval`? known here: `example-target-folder`, `notify-webhook`, `retain-count`, `schedule-interval`
    "#]],
    );
    check_with(
        "sign = [\"hook\"]",
        "sign = [\"hok\"]",
        expect![[r#"
        error: plugin.notify-webhook.grants.sign[0]: there is no key `hok`
          where: vmferry.toml:22:56
          remedy: did you mean `hook`? known here: `hook`
    "#]],
    );
    check_with(
        "[plugin.notify-webhook]",
        "[plugin.notify-webhok]",
        expect![[r#"
        error: plugin.notify-webhok: no plugin of this name is part of the program
          where: vmferry.toml:21:9
          remedy: add `path = "FOLDER OR FILE"`; did you mean `plugin.notify-webhook`?
    "#]],
    );
}

#[test]
fn what_is_missing_is_named_with_an_example() {
    check(
        "[pool.prod]\n[job.erp]\n",
        expect![[r#"
        error: pool.prod: `url` is missing
          where: vmferry.toml:1:7
          remedy: add `url = "https://xen1.example.org"`
        error: job.erp: `select` is missing
          where: vmferry.toml:2:6
          remedy: add `select = { pool = "prod", tags = ["erp"] }`
        error: job.erp: `targets` is missing
          where: vmferry.toml:2:6
          remedy: add `targets = [{ name = "dr", pool = "dr", sr = "UUID" }]`
    "#]],
    );
}

#[test]
fn everything_is_told_at_once() {
    check(
        "[pool.prod]\nurl = 1\nusername = 2\n[storage]\n[job.erp]\nselect = 3\ntargets = []\n",
        expect![[r#"
            error: pool.prod.url: expected a string, found an integer
              where: vmferry.toml:2:7
            error: pool.prod.username: expected a string, found an integer
              where: vmferry.toml:3:12
            error: job.erp.select: expected a table, found an integer
              where: vmferry.toml:6:10
            error: job.erp: `targets` is missing
              where: vmferry.toml:5:6
              remedy: add `targets = [{ name = "dr", pool = "dr", sr = "UUID" }]`
            error: unknown section `storage`
              where: vmferry.toml:4:2
              remedy: did you mean `store`? known here: `pool`, `job`, `plugin`, `link`, `key`, `seal_key`, `store`
        "#]],
    );
}

#[test]
fn a_broken_file_is_told_with_its_place() {
    check(
        "[pool.prod]\nurl = \"https://xen1\n",
        expect![[r#"
        error: not TOML: invalid basic string, expected `"`
          where: vmferry.toml:2:20
    "#]],
    );
    check(
        "[pool.prod]\n[pool.prod]\n",
        expect![[r#"
        error: not TOML: duplicate key
          where: vmferry.toml:2:7
    "#]],
    );
}

#[test]
fn a_missing_or_empty_secret_names_pool_file_and_remedy() {
    check_with(
        "secrets/prod",
        "secrets/production",
        expect![[r#"
        error: pool.prod: password file secrets/production: No such file or directory (os error 2)
          where: vmferry.toml:5:17
          remedy: write the password into that file (mode 0600), or correct `password_file`
    "#]],
    );
    let folder = Folder::with(GOOD);
    folder.write("secrets/prod", "\n");
    expect![[r#"
        error: pool.prod: password file secrets/prod is empty
          where: vmferry.toml:5:17
          remedy: write the password into it
    "#]]
    .assert_eq(&folder.text(folder.load().unwrap_err()));
    check_with(
        "HOOK_KEY",
        "HOOK_KEX",
        expect![[r#"
        error: key.hook.secret_env: the environment variable HOOK_KEX is not set
          where: vmferry.toml:26:14
          remedy: set it to the key before the program starts
    "#]],
    );
    check_with(
        "password_file = \"secrets/prod\"",
        "",
        expect![[r#"
        error: pool.prod: `password_file` is missing
          where: vmferry.toml:2:7
          remedy: add `password_file = "secrets/pool"`
    "#]],
    );
    check_with(
        "password_file =",
        "password = \"a\"\npassword_file =",
        expect![[r#"
        error: pool.prod: the password is given more than once
          where: vmferry.toml:2:7
          remedy: keep one of `password`, `password_file` and `password_env`
    "#]],
    );
}

#[test]
fn a_file_with_a_secret_that_others_may_read_is_a_warning() {
    let folder = Folder::with(GOOD);
    folder.mode("secrets/prod", 0o640);
    folder.mode("vmferry.toml", 0o644);
    let config = folder.load().unwrap();
    expect![[r#"
        warning: pool.dr: the password stands in vmferry.toml, which others may read (mode 0644)
          where: vmferry.toml:8:7
          remedy: chmod 600 vmferry.toml
        warning: pool.prod: the password stands in secrets/prod, which others may read (mode 0640)
          where: vmferry.toml:2:7
          remedy: chmod 600 secrets/prod
    "#]]
    .assert_eq(&folder.text(config.warnings.iter().map(Problem::as_warning)));
}

#[test]
fn plain_http_is_accepted_with_a_warning() {
    let folder = Folder::with(&GOOD.replace("https://xen1", "http://xen1"));
    let config = folder.load().unwrap();
    expect![[r#"
        warning: pool.prod: http://xen1.example.org is not encrypted: password and disks travel readable, and no certificate is checked
          where: vmferry.toml:2:7
          remedy: use https:// unless the network is trusted
    "#]].assert_eq(&folder.text(config.warnings.iter().map(Problem::as_warning)));
}

#[test]
fn a_missing_file_is_told() {
    let folder = Folder::with(GOOD);
    std::fs::remove_file(folder.0.path().join("vmferry.toml")).unwrap();
    expect![[r#"
        error: the configuration cannot be read: No such file or directory (os error 2)
          where: vmferry.toml
          remedy: name the right file with `--config FILE`; `vmferry demo --keep` writes one to look at
    "#]]
    .assert_eq(&folder.text(folder.load().unwrap_err()));
}

#[test]
fn files_of_conf_d_add_to_the_main_file_and_do_not_override_it() {
    let folder = Folder::with(GOOD);
    folder.write(
        "conf.d/10-web.toml",
        &GOOD[GOOD.find("[job.erp]").unwrap()..GOOD.find("[plugin").unwrap()].replace("erp", "web"),
    );
    folder.write("conf.d/notes.txt", "not read");
    let config = folder.load().unwrap();
    assert_eq!(config.jobs.keys().collect::<Vec<_>>(), ["erp", "web"]);
    assert_eq!(config.files.len(), 2);

    folder.write("conf.d/20-again.toml", "[pool.dr]\nurl = \"https://other\"\n[store]\npath = \"/elsewhere\"\n");
    expect![[r#"
        error: pool.dr is given twice
          where: conf.d/20-again.toml:1:7
          remedy: keep this one or the one at vmferry.toml:8:7
        error: store.path is given twice
          where: conf.d/20-again.toml:4:8
          remedy: keep this one or the one at vmferry.toml:12:8
    "#]]
    .assert_eq(&folder.text(folder.load().unwrap_err()));
}

#[test]
fn an_unknown_job_is_answered_with_the_nearest_and_the_list() {
    let folder = Folder::with(GOOD);
    let problem = folder.load().unwrap().job("epr").unwrap_err();
    expect![[r#"
        error: there is no job `epr`
          where: vmferry.toml
          remedy: did you mean `erp`? known here: `erp`
    "#]]
    .assert_eq(&folder.text([problem]));
}

#[test]
fn limits_on_chains_have_their_range() {
    let chains = |line: &str| {
        let folder = Folder::with(&GOOD.replace("[job.erp]", &format!("[job.erp]\n{line}")));
        folder.load().map(|config| config.jobs["erp"].chains).map_err(|problems| folder.text(&problems))
    };
    assert_eq!(chains(""), Ok(ChainLimits { wait_above: 20, max: 27 }));
    assert_eq!(chains("chain = { wait_above = 12, max = 25 }"), Ok(ChainLimits { wait_above: 12, max: 25 }));
    expect![[r#"
        error: job.erp.chain.max: 30 is out of range
          where: vmferry.toml:15:17
          remedy: give 2 to 29
    "#]]
    .assert_eq(&chains("chain = { max = 30 }").unwrap_err());
}

#[test]
fn a_snapshot_is_of_the_disks_unless_it_is_to_be_offline_or_to_hold_the_memory() {
    let snapshot = |line: &str| {
        let folder = Folder::with(&GOOD.replace("[job.erp]", &format!("[job.erp]\n{line}")));
        folder.load().map(|config| config.jobs["erp"].snapshot).map_err(|problems| folder.text(&problems))
    };
    assert_eq!(snapshot(""), Ok(SnapshotMode::Disks));
    assert_eq!(snapshot("snapshot = \"offline\""), Ok(SnapshotMode::Offline));
    assert_eq!(snapshot("snapshot = \"memory\""), Ok(SnapshotMode::Memory));
    let refused = snapshot("snapshot = \"ram\"").unwrap_err();
    assert!(refused.contains("memory") && refused.contains("offline"), "{refused}");
}
