//! Facts about a pool whose master changes.

mod support;

use std::time::Duration;

use support::{Host, Identity, acceptor, failure, in_no_time, later, list, members, raw, value};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Endpoint, Error, Ref, Session, params};
use xapi_sim::{Sim, SimConfig, VmSpec};

/// A pool of three hosts with a VM.
async fn pool() -> (Sim, Endpoint, Ref<Vm>) {
    let sim = Sim::start(SimConfig { hosts: 3, ..SimConfig::default() }).await.expect("starts");
    let vm = sim.add_vm(VmSpec { name: "web".to_owned(), ..VmSpec::default() });
    let endpoint = Endpoint::parse(&sim.url()).expect("a URL").with_credentials("root", "password");
    let session = login(&endpoint).await;
    let vm = session.by_uuid(&vm).await.expect("a VM");
    session.logout().await.expect("logged out");
    (sim, endpoint, vm)
}

async fn login(endpoint: &Endpoint) -> Session {
    Session::login(endpoint, "test").await.expect("login")
}

fn place(sim: &Sim, host: usize) -> String {
    sim.host_urls()[host].trim_start_matches("http://").to_owned()
}

#[tokio::test]
async fn a_session_follows_the_pool_to_the_master_that_took_over_from_a_dead_one() {
    for sessions_are_lost in [true, false] {
        let (sim, endpoint, vm) = pool().await;
        let session = login(&endpoint).await;
        sim.change_master(2);
        if sessions_are_lost {
            sim.lose_sessions();
        }
        sim.shut_down_host(0).await;

        // A write: nobody can have seen it, so it is made again.
        session.call::<()>("VM.set_name_label", params![&vm, "moved"]).await.expect("at the new master");
        assert_eq!(session.get_record(&vm).await.expect("read").name_label, "moved");
        assert_eq!(session.master_address(), place(&sim, 2));
        assert_eq!(sim.object_counts()["session"], 1, "the one before is not left");
        session.logout().await.expect("logged out");
        assert_eq!(sim.object_counts().get("session"), None);
    }
}

#[tokio::test]
async fn a_session_that_is_lost_with_the_role_of_its_master_is_made_anew_where_that_is_now() {
    let (sim, endpoint, vm) = pool().await;
    let session = login(&endpoint).await;
    sim.change_master(1);
    sim.lose_sessions();
    session.call::<()>("VM.set_name_label", params![&vm, "moved"]).await.expect("at the new master");
    assert_eq!(session.master_address(), place(&sim, 1));
}

#[tokio::test]
async fn a_login_begins_at_a_host_that_an_earlier_one_has_seen_where_its_own_is_down() {
    let (sim, endpoint, _) = pool().await;
    sim.change_master(1);
    sim.shut_down_host(0).await;
    assert_eq!(login(&endpoint.clone()).await.master_address(), place(&sim, 1));
}

#[tokio::test]
async fn a_member_is_as_good_an_address_as_the_master() {
    let (sim, _, _) = pool().await;
    let member = Endpoint::parse(&sim.host_urls()[1]).expect("a URL").with_credentials("root", "password");
    assert_eq!(login(&member).await.master_address(), place(&sim, 0));
}

#[tokio::test]
async fn without_a_master_the_error_is_that_of_the_one_before() {
    let (sim, endpoint, vm) = pool().await;
    let session = login(&endpoint).await;
    sim.shut_down_host(0).await;
    let call = in_no_time(session.call::<()>("VM.set_name_label", params![&vm, "x"]));
    let error = call.await.expect_err("no master");
    assert!(matches!(&error, Error::Transport { address, .. } if *address == place(&sim, 0)), "{error}");
    // One that comes back is gone on with.
    assert_eq!(session.master_address(), place(&sim, 0));
}

#[tokio::test]
async fn a_call_that_is_refused_by_a_former_master_is_made_at_the_one_that_it_names() {
    let (former, master) = (Host::start().await, Host::start().await);
    let session = former.login().await;
    let address = format!("127.0.0.1:{}", master.port);
    for method in ["VM.start", "session.login_with_password"] {
        let address = address.clone();
        former.on(method, move |_| failure(["HOST_IS_SLAVE", &address]));
    }
    master.on("VM.start", |_| value(""));
    session.call::<()>("VM.start", params!["OpaqueRef:1"]).await.expect("at the master");
    assert_eq!((former.count("VM.start"), master.count("VM.start")), (1, 1));
}

#[tokio::test]
async fn a_call_that_the_dead_master_may_have_done_is_not_repeated() {
    let (former, master) = (Host::start().await, Host::start().await);
    let address = format!("127.0.0.1:{}", master.port);
    let hosts = members(&[("OpaqueRef:h", &members(&[("uuid", "h"), ("address", &address)]))]);
    former.on("host.get_all_records", move |_| value(&hosts));
    let session = former.login().await;
    former.on("VM.start", |_| raw(""));
    master.on("VM.start", |_| value(""));
    let error = session.call::<()>("VM.start", params!["OpaqueRef:1"]).await.expect_err("nobody knows");
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert_eq!((former.count("VM.start"), master.count("VM.start")), (1, 0));
}

#[tokio::test]
async fn a_host_that_does_not_say_whether_it_is_the_master_keeps_nobody_waiting() {
    let (silent, master) = (Host::start().await, Host::start().await);
    silent.on("session.login_with_password", |_| later(std::future::pending()));
    let (sim, endpoint, _) = pool().await;
    let session = login(&endpoint).await;
    // The pool names two hosts that are not simulated with it.
    let vms = session.call::<Vec<Ref<Vm>>>("VM.get_all", params![]).await.expect("read");
    for (host, port) in [(1, silent.port), (2, master.port)] {
        let host = &sim.records("host")[host]["$ref"].as_str().expect("a reference").to_owned();
        let address = format!("127.0.0.1:{port}");
        session.call::<()>("host.set_address", params![host.as_str(), address]).await.expect("set");
    }
    let session = login(&endpoint).await;
    sim.shut_down_host(0).await;
    let vms: Vec<String> = vms.iter().map(ToString::to_string).collect();
    master.on("VM.get_all", move |_| value(list(&vms)));
    let call = session.call::<Vec<String>>("VM.get_all", params![]);
    tokio::time::timeout(Duration::from_secs(10), call).await.expect("in time").expect("at the new master");
}

#[tokio::test]
async fn a_pin_believes_the_certificates_that_the_pool_named_for_its_other_hosts() {
    let identities = [Identity::new("xen1"), Identity::new("xen2")];
    let acceptors = identities.each_ref().map(|identity| {
        let (chain, key) = (vec![identity.certificate.clone()], identity.key.clone_key());
        acceptor(chain, key, rustls::DEFAULT_VERSIONS)
    });
    for named in [0, 1] {
        let former = Host::start_with(Some(acceptors[0].clone())).await;
        let master = Host::start_with(Some(acceptors[1].clone())).await;
        let address = format!("127.0.0.1:{}", master.port);
        let hosts = members(&[("OpaqueRef:h", &members(&[("uuid", "h"), ("address", &address)]))]);
        let pem = identities[named].pem.clone();
        former.on("host.get_all_records", move |_| value(&hosts));
        former.on("host.get_server_certificate", move |_| value(&pem));
        let endpoint = former.endpoint().with_trust(identities[0].pin());
        let session = login(&endpoint).await;

        former.on("VM.get_all", |_| failure(["SESSION_INVALID", "x"]));
        former.on("session.login_with_password", move |_| failure(["HOST_IS_SLAVE", &address]));
        master.on("VM.get_all", |_| value(list(&["OpaqueRef:1"])));
        let moved = session.call::<Vec<String>>("VM.get_all", params![]).await;
        match named {
            1 => assert_eq!(moved.expect("at the new master"), ["OpaqueRef:1"]),
            _ => assert!(matches!(moved, Err(Error::CertificateNotTrusted { .. })), "{moved:?}"),
        }
    }
}
