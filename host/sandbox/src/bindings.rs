//! Generated from `wit/`; nothing else belongs here.
//!
//! Interfaces that several worlds share are generated once, by the first block.

pub(crate) mod host {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: r#"
            package vmferry:sandbox;
            world host {
                import vmferry:plugin/types@0.1.0;
                import vmferry:plugin/log@0.1.0;
                import vmferry:plugin/store@0.1.0;
                import vmferry:plugin/sign@0.1.0;
            }
        "#,
        imports: {
            "vmferry:plugin/store@0.1.0": async,
            default: tracing,
        },
        require_store_data_send: true,
    });
}

pub(crate) mod scheduler {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "vmferry:plugin/scheduler",
        exports: { default: async },
        with: {
            "vmferry:plugin/types": super::host::vmferry::plugin::types,
            "vmferry:plugin/log": super::host::vmferry::plugin::log,
        },
        require_store_data_send: true,
    });
}

pub(crate) mod retention {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "vmferry:plugin/retention",
        exports: { default: async },
        with: {
            "vmferry:plugin/types": super::host::vmferry::plugin::types,
            "vmferry:plugin/log": super::host::vmferry::plugin::log,
        },
        require_store_data_send: true,
    });
}

pub(crate) mod notifier {
    wasmtime::component::bindgen!({
        path: "../../wit",
        // The world without the imports that this host does not offer yet, so that no glue is made for them.
        inline: r#"
            package vmferry:sandbox;
            world notifier {
                import vmferry:plugin/log@0.1.0;
                import vmferry:plugin/store@0.1.0;
                import vmferry:plugin/sign@0.1.0;
                export vmferry:plugin/notify@0.1.0;
            }
        "#,
        exports: { default: async },
        with: {
            "vmferry:plugin/types": super::host::vmferry::plugin::types,
            "vmferry:plugin/log": super::host::vmferry::plugin::log,
            "vmferry:plugin/store": super::host::vmferry::plugin::store,
            "vmferry:plugin/sign": super::host::vmferry::plugin::sign,
        },
        require_store_data_send: true,
    });
}

pub(crate) mod target {
    wasmtime::component::bindgen!({
        path: "../../wit",
        // The world without WASI, which its own crates add.
        inline: r#"
            package vmferry:sandbox;
            world target {
                import vmferry:plugin/log@0.1.0;
                import vmferry:plugin/store@0.1.0;
                import vmferry:plugin/sign@0.1.0;
                import vmferry:plugin/seal@0.1.0;
                import vmferry:plugin/lock@0.1.0;
                import vmferry:plugin/delta@0.1.0;
                export vmferry:plugin/replicate@0.1.0;
            }
        "#,
        imports: {
            "vmferry:plugin/delta@0.1.0.[method]delta.next": async | trappable,
            "vmferry:plugin/delta@0.1.0.[method]restore.finish": async | trappable,
            "vmferry:plugin/lock@0.1.0.acquire": async | trappable,
            "vmferry:plugin/lock@0.1.0.[method]lease.renew": async | trappable,
            "vmferry:plugin/lock@0.1.0.[drop]lease": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: {
            "vmferry:plugin/types": super::host::vmferry::plugin::types,
            "vmferry:plugin/log": super::host::vmferry::plugin::log,
            "vmferry:plugin/store": super::host::vmferry::plugin::store,
            "vmferry:plugin/sign": super::host::vmferry::plugin::sign,
            "vmferry:plugin/lock.lease": crate::lock::Lease,
            "vmferry:plugin/delta.delta": crate::target::data::Delta,
            "vmferry:plugin/delta.chunk": crate::target::data::Chunk,
            "vmferry:plugin/delta.payload": crate::target::data::Payload,
            "vmferry:plugin/delta.restore": crate::target::data::Restore,
            "wasi:io": wasmtime_wasi::p2::bindings::io,
        },
        require_store_data_send: true,
    });
}
