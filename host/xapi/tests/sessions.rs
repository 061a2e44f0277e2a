//! Facts about calls and sessions.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::{Host, PATIENCE, SESSION, failure, later, members, raw, value};
use vmferry_xapi::records::{PowerState, Vm};
use vmferry_xapi::{ApiError, Endpoint, Error, Operation, Ref, Retry, Session, Value, params};

const SECOND_SESSION: &str = "OpaqueRef:5e552000-0000-0000-0000-000000000002";

#[tokio::test]
async fn a_login_goes_on_to_the_master_that_a_member_names() {
    let (member, master) = (Host::start().await, Host::start().await);
    let address = format!("127.0.0.1:{}", master.port);
    member.on("session.login_with_password", move |_| failure(["HOST_IS_SLAVE", &address]));
    master.on("pool.get_all", |_| value(support::list(&["OpaqueRef:p"])));

    let session = member.login().await;
    assert_eq!(session.master_address(), format!("127.0.0.1:{}", master.port));
    assert!(!session.endpoint_is_tls());
    session.call::<Vec<String>>("pool.get_all", params![]).await.expect("at the master");
    session.logout().await.expect("logout");
    assert_eq!(member.names(), ["session.login_with_password"]);
    let names = ["session.login_with_password", "host.get_all_records", "pool.get_all", "session.logout"];
    assert_eq!(master.names(), names);
}

#[tokio::test]
async fn hosts_that_name_each_other_are_not_followed_forever() {
    let host = Host::start().await;
    let address = format!("127.0.0.1:{}", host.port);
    host.on("session.login_with_password", move |_| failure(["HOST_IS_SLAVE", &address]));
    let error = Session::login(&host.endpoint(), "test").await.expect_err("no master");
    assert!(matches!(error, Error::NoMaster { .. }), "{error}");
    assert_eq!(host.count("session.login_with_password"), 3);
}

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password() {
    let host = Host::start().await;
    host.on("session.login_with_password", |_| {
        failure(["SESSION_AUTHENTICATION_FAILED", "root", "no luck with hunter2"])
    });
    let error = Session::login(&host.endpoint(), "test").await.expect_err("refused");
    assert_eq!(error.retry(), Retry::Never);
    match error.api() {
        Some(ApiError::AuthenticationFailed { user, .. }) => assert_eq!(user, "root"),
        other => panic!("{other:?}"),
    }
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[tokio::test]
async fn a_login_sends_decoded_credentials_version_and_originator() {
    let host = Host::start().await;
    let url = format!("http://ro%40ot:p%23%26@127.0.0.1:{}", host.port);
    let endpoint = Endpoint::parse(&url).expect("a good URL");
    Session::login(&endpoint, "vmferry").await.expect("login");
    let body = &host.requests()[0].body;
    for part in
        ["<string>ro@ot</string>", "<string>p#&amp;</string>", "<string>1.0</string>", "<string>vmferry</string>"]
    {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[tokio::test]
async fn an_endpoint_without_credentials_is_refused_before_anything_is_sent() {
    let host = Host::start().await;
    let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{}", host.port)).expect("a good URL");
    let error = Session::login(&endpoint, "test").await.expect_err("no user");
    assert!(matches!(error, Error::NoCredentials { .. }), "{error}");
    assert!(host.requests().is_empty());
}

#[tokio::test]
async fn a_dead_session_is_renewed_once_and_the_call_repeated_even_if_it_writes() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("session.login_with_password", |_| value(SECOND_SESSION));
    host.on("VM.set_name_label", |request| {
        if request.body.contains(SESSION) { failure(["SESSION_INVALID", SESSION]) } else { value("") }
    });
    session.call::<()>("VM.set_name_label", params!["OpaqueRef:1", "x"]).await.expect("on the second session");
    assert_eq!(host.count("session.login_with_password"), 2);

    session.logout().await.expect("logout");
    let logout = host.requests().pop().expect("a request");
    assert!(logout.body.contains(SECOND_SESSION), "the new session is the one that is logged out");
}

#[tokio::test]
async fn a_session_that_stays_invalid_is_an_error_without_its_reference() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("VM.get_all", |_| failure(["SESSION_INVALID", SESSION]));
    let error = session.call::<Vec<String>>("VM.get_all", params![]).await.expect_err("invalid twice");
    assert!(matches!(error.api(), Some(ApiError::SessionInvalid)), "{error}");
    assert!(!format!("{error:?} {error} {session:?}").contains(SESSION));
    assert_eq!(host.count("VM.get_all"), 2);
}

#[tokio::test]
async fn many_calls_on_a_dead_session_make_one_new_session() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("session.login_with_password", |_| value(SECOND_SESSION));
    host.on("VM.get_all", |request| {
        if request.body.contains(SESSION) {
            failure(["SESSION_INVALID", SESSION])
        } else {
            value(support::list(&["r"]))
        }
    });
    let calls = (0..8).map(|_| {
        let session = session.clone();
        tokio::spawn(async move { session.call::<Vec<String>>("VM.get_all", params![]).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic").expect("renewed");
    }
    assert_eq!(host.count("session.login_with_password"), 2);
}

#[tokio::test]
async fn a_session_that_was_logged_out_makes_no_call_and_no_new_session() {
    let host = Host::start().await;
    let session = host.login().await;
    let clone = session.clone();
    session.logout().await.expect("logout");
    session.logout().await.expect("a second logout has nothing to do");
    let error = clone.call::<()>("VM.get_all", params![]).await.expect_err("logged out");
    assert!(matches!(error, Error::LoggedOut { .. }), "{error}");
    assert_eq!(host.names(), ["session.login_with_password", "host.get_all_records", "session.logout"]);
}

#[tokio::test]
async fn a_lost_connection_repeats_a_read_but_never_a_write() {
    let host = Host::start().await;
    let session = host.login().await;
    for method in ["VM.get_power_state", "VM.start"] {
        host.on(method, |_| value("Halted"));
        host.once(method, |_| raw(""));
    }
    let state: PowerState = session.call("VM.get_power_state", params!["OpaqueRef:1"]).await.expect("repeated");
    assert_eq!(state, PowerState::Halted);
    assert_eq!(host.count("VM.get_power_state"), 2);

    let error = session.call::<String>("VM.start", params!["OpaqueRef:1"]).await.expect_err("nobody knows");
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert_eq!((error.retry(), host.count("VM.start")), (Retry::Later, 1));
}

#[tokio::test]
async fn a_host_that_is_full_of_tasks_is_asked_again_whatever_the_call() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("VM.start", |_| value(""));
    host.once("VM.start", |_| failure(["TOO_MANY_PENDING_TASKS"]));
    session.call::<()>("VM.start", params!["OpaqueRef:1"]).await.expect("once there is a place");
    assert_eq!(host.count("VM.start"), 2);
}

#[tokio::test]
async fn an_unreachable_host_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let endpoint = Endpoint::parse(&format!("http://{address}")).expect("a URL").with_credentials("root", "hunter2");
    let error = Session::login(&endpoint, "test").await.expect_err("nobody listens");
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("refused"), "{text}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_a_timeout() {
    let host = Host::start().await;
    let endpoint = host.endpoint().with_rpc_timeout(Duration::from_millis(200));
    let session = Session::login(&endpoint, "test").await.expect("login");
    host.on("VM.get_all", |_| later(std::future::pending()));
    let call = session.call::<Vec<String>>("VM.get_all", params![]);
    let error = tokio::time::timeout(PATIENCE, call).await.expect("bounded").expect_err("too late");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(host.count("VM.get_all"), 1, "what took an hour is not asked again");
}

#[tokio::test]
async fn malformed_xml_is_an_error_with_a_position_and_no_secret() {
    let host = Host::start().await;
    let session = host.login().await;
    let answer = |body: &str| raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    host.on("VM.get_all", move |_| answer("<methodResponse><params><param></value>"));
    match session.call::<Vec<String>>("VM.get_all", params![]).await {
        Err(Error::Malformed { during, position, snippet, .. }) => {
            assert_eq!((during.as_str(), position), ("VM.get_all", 31));
            assert!(snippet.contains("</value>"), "{snippet}");
        }
        other => panic!("{other:?}"),
    }
    host.on("VM.get_all", move |_| answer(&format!("<methodResponse>{SESSION}")));
    let error = session.call::<Vec<String>>("VM.get_all", params![]).await.expect_err("malformed");
    assert!(!format!("{error:?} {error}").contains(&SESSION[..20]), "{error:?}");
}

#[tokio::test]
async fn an_http_error_is_told_with_its_status_and_its_words() {
    let host = Host::start().await;
    let session = host.login().await;
    let page = format!("<html><body>Internal <b>server</b> error {SESSION}</body></html>");
    let answer = format!("HTTP/1.1 500 Internal Server Error\r\ncontent-length: {}\r\n\r\n{page}", page.len());
    host.on("VM.start", move |_| raw(&answer));
    match session.call::<()>("VM.start", params!["OpaqueRef:1"]).await {
        Err(Error::Http { status, excerpt, .. }) => {
            assert_eq!((status, excerpt.as_str()), (500, "Internal server error …"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_of_another_type_is_told_apart_from_a_malformed_one() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("VDI.get_virtual_size", |_| value("a lot"));
    let error = session.call::<i64>("VDI.get_virtual_size", params!["OpaqueRef:1"]).await.expect_err("no number");
    assert!(matches!(error, Error::Decode { .. }), "{error}");
}

#[tokio::test]
async fn a_call_too_large_for_the_host_is_not_sent() {
    let host = Host::start().await;
    let session = host.login().await;
    let error = session.call::<()>("VM.set_name_label", params!["x".repeat(400_000)]).await.expect_err("too large");
    assert!(matches!(error, Error::Unsendable { .. }), "{error}");
    assert_eq!(host.count("VM.set_name_label"), 0);
}

#[tokio::test]
async fn records_are_read_typed_and_whole() {
    let host = Host::start().await;
    let session = host.login().await;
    let vm = members(&[
        ("uuid", "u-1"),
        ("name_label", "erp &amp; co"),
        ("power_state", "Running"),
        ("is_a_snapshot", "<boolean>0</boolean>"),
        ("memory_static_max", "4294967296"),
        ("snapshot_time", "<dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601>"),
        ("other_config", &members(&[("vmferry:job", "erp")])),
        ("VBDs", &support::list(&["OpaqueRef:b1", "OpaqueRef:b2"])),
        ("of_a_later_release", "x"),
    ]);
    let all = members(&[("OpaqueRef:1", &vm)]);
    host.on("VM.get_all_records", move |_| value(&all));
    host.on("VM.get_record", move |_| value(&vm));
    host.on("VM.get_by_uuid", |_| failure(["UUID_INVALID", "VM", "u-2"]));

    let records = session.get_all_records::<Vm>().await.expect("reads");
    let [(reference, vm)] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((reference.as_str(), vm.name_label.as_str()), ("OpaqueRef:1", "erp & co"));
    assert_eq!((vm.power_state.clone(), vm.memory_static_max), (PowerState::Running, 4 << 30));
    assert_eq!((vm.vbds.len(), vm.other_config["vmferry:job"].as_str()), (2, "erp"));
    assert_eq!(vm.raw["of_a_later_release"], Value::String("x".to_owned()));
    assert_eq!(&session.get_record(reference).await.expect("the same"), vm);

    let error = session.by_uuid::<Vm>("u-2").await.expect_err("unknown");
    assert!(matches!(error.api(), Some(ApiError::UuidInvalid { .. })), "{error}");
}

#[tokio::test]
async fn a_key_of_other_config_is_claimed_or_replaced() {
    let host = Host::start().await;
    let session = host.login().await;
    let vm = Ref::<Vm>::new("OpaqueRef:1");
    host.on("VM.remove_from_other_config", |_| value(""));
    host.on("VM.add_to_other_config", |_| value(""));
    session.set_other_config_key(&vm, "k", "v").await.expect("replaced");
    assert_eq!(host.names()[2..], ["VM.remove_from_other_config", "VM.add_to_other_config"]);

    host.on("VM.add_to_other_config", |_| failure(["MAP_DUPLICATE_KEY", "VM", "other_config", "u-1", "k"]));
    match session.add_to_other_config(&vm, "k", "v").await {
        Err(Error::Api(ApiError::MapDuplicateKey { key, .. })) => assert_eq!(key, "k"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_clock_is_the_masters() {
    let host = Host::start().await;
    let session = host.login().await;
    let pools = members(&[("OpaqueRef:p", &members(&[("uuid", "p"), ("master", "OpaqueRef:master")]))]);
    host.on("pool.get_all_records", move |_| value(&pools));
    host.on("host.get_servertime", |request| {
        assert!(request.body.contains("OpaqueRef:master"));
        value("<dateTime.iso8601>20260821T09:30:00Z</dateTime.iso8601>")
    });
    assert_eq!(session.server_time().await.expect("a date").to_string(), "2026-08-21T09:30:00Z");
}

#[tokio::test]
async fn events_begin_with_everything_and_begin_anew_after_an_error() {
    let host = Host::start().await;
    let session = host.login().await;
    let event =
        members(&[("class", "vm"), ("operation", "del"), ("ref", "OpaqueRef:1"), ("id", "1"), ("timestamp", "0.0")]);
    host.on("event.from", move |_| value(support::batch(std::slice::from_ref(&event))));
    let mut events = session.events(["vm", "vdi"]);
    let batch = events.next(Duration::from_secs(1)).await.expect("a batch");
    assert_eq!((batch[0].operation, batch[0].snapshot.clone()), (Operation::Del, None));
    assert_eq!(events.counts(), &BTreeMap::from([("task".to_owned(), 1)]));

    host.once("event.from", |_| failure(["EVENT_FROM_TOKEN_PARSE_FAILURE", "x"]));
    events.next(Duration::from_secs(1)).await.expect_err("the token is refused");
    events.next(Duration::from_secs(1)).await.expect("anew");
    let calls: Vec<_> = host.requests().into_iter().filter(|r| r.name == "event.from").collect();
    let tokens = calls.iter().map(|call| call.body.contains("00000000000000000002,")).collect::<Vec<_>>();
    assert_eq!(tokens, [false, true, false]);
}
