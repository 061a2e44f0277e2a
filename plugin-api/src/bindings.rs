//! Generated from `wit/`; nothing else belongs here.
//!
//! The shared interfaces are generated once, by the first block, and the worlds refer to them, so that an `Error`
//! is the same type for every kind of plugin.

pub mod host {
    wit_bindgen::generate!({
        path: "../wit",
        inline: r#"
            package vmferry:plugin-api;
            world host {
                import vmferry:plugin/types@0.1.0;
                import vmferry:plugin/log@0.1.0;
                import vmferry:plugin/store@0.1.0;
                import vmferry:plugin/sign@0.1.0;
                import vmferry:plugin/seal@0.1.0;
                import vmferry:plugin/lock@0.1.0;
            }
        "#,
        generate_all,
        generate_unused_types: true,
        additional_derives: [PartialEq],
    });
}

pub mod http {
    wit_bindgen::generate!({
        path: "../wit",
        inline: r#"
            package vmferry:plugin-api;
            world http {
                import wasi:http/types@0.2.12;
                import wasi:http/outgoing-handler@0.2.12;
            }
        "#,
        generate_all,
    });
}

pub mod scheduler {
    wit_bindgen::generate!({
        path: "../wit",
        world: "vmferry:plugin/scheduler",
        with: {
            "vmferry:plugin/types@0.1.0": super::host::vmferry::plugin::types,
            "vmferry:plugin/log@0.1.0": super::host::vmferry::plugin::log,
        },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_component",
    });
}

pub mod retention {
    wit_bindgen::generate!({
        path: "../wit",
        world: "vmferry:plugin/retention",
        with: {
            "vmferry:plugin/types@0.1.0": super::host::vmferry::plugin::types,
            "vmferry:plugin/log@0.1.0": super::host::vmferry::plugin::log,
        },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_component",
    });
}

pub mod notifier {
    wit_bindgen::generate!({
        path: "../wit",
        world: "vmferry:plugin/notifier",
        with: {
            "vmferry:plugin/types@0.1.0": super::host::vmferry::plugin::types,
            "vmferry:plugin/log@0.1.0": super::host::vmferry::plugin::log,
            "vmferry:plugin/store@0.1.0": super::host::vmferry::plugin::store,
            "vmferry:plugin/sign@0.1.0": super::host::vmferry::plugin::sign,
            "wasi:io/poll@0.2.12": super::http::wasi::io::poll,
            "wasi:io/error@0.2.12": super::http::wasi::io::error,
            "wasi:io/streams@0.2.12": super::http::wasi::io::streams,
            "wasi:clocks/monotonic-clock@0.2.12": super::http::wasi::clocks::monotonic_clock,
            "wasi:http/types@0.2.12": super::http::wasi::http::types,
            "wasi:http/outgoing-handler@0.2.12": super::http::wasi::http::outgoing_handler,
        },
        generate_all,
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_component",
    });
}

pub mod target {
    wit_bindgen::generate!({
        path: "../wit",
        world: "vmferry:plugin/target",
        with: {
            "vmferry:plugin/types@0.1.0": super::host::vmferry::plugin::types,
            "vmferry:plugin/log@0.1.0": super::host::vmferry::plugin::log,
            "vmferry:plugin/store@0.1.0": super::host::vmferry::plugin::store,
            "vmferry:plugin/sign@0.1.0": super::host::vmferry::plugin::sign,
            "vmferry:plugin/seal@0.1.0": super::host::vmferry::plugin::seal,
            "vmferry:plugin/lock@0.1.0": super::host::vmferry::plugin::lock,
            "wasi:io/poll@0.2.12": super::http::wasi::io::poll,
            "wasi:io/error@0.2.12": super::http::wasi::io::error,
            "wasi:io/streams@0.2.12": super::http::wasi::io::streams,
            "wasi:clocks/monotonic-clock@0.2.12": super::http::wasi::clocks::monotonic_clock,
            "wasi:http/types@0.2.12": super::http::wasi::http::types,
            "wasi:http/outgoing-handler@0.2.12": super::http::wasi::http::outgoing_handler,
        },
        generate_all,
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_component",
    });
}
