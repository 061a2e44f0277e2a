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
