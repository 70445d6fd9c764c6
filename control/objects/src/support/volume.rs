//! Volumes.

use super::{Rule, Table, refused, served, warned};

const NO_SUCH_VOLUME: &str = "this kind of volume cannot be given to a WebAssembly component: use configMap, downwardAPI, \
    emptyDir, projected or secret";
const NO_CLAIM: &str = "persistent volumes are not served yet: use emptyDir, configMap or secret";
const MODE: &str = "of the file on its node: WASI shows components no permissions";

pub static VOLUME: Table = Table {
    title: "Volumes",
    schema: "io.k8s.api.core.v1.Volume",
    base: r#"{"name":"v"}"#,
    rules: RULES,
    parts: &[],
};

const fn no_such(path: &'static str) -> Rule {
    refused(path, "{}", NO_SUCH_VOLUME)
}

const RULES: &[Rule] = &[
    no_such("awsElasticBlockStore"),
    no_such("azureDisk"),
    no_such("azureFile"),
    no_such("cephfs"),
    no_such("cinder"),
    served("configMap.defaultMode", r#"^{"configMap":{"name":"a","defaultMode":256}}"#).note(MODE),
    served("configMap.items[].key", ITEM),
    served(
        "configMap.items[].mode",
        r#"^{"configMap":{"name":"a","items":[{"key":"k","path":"p","mode":256}]}}"#,
    )
    .note(MODE),
    served("configMap.items[].path", ITEM),
    served("configMap.name", ITEM),
    served("configMap.optional", r#"^{"configMap":{"name":"a","optional":true}}"#),
    no_such("csi"),
    served("downwardAPI.defaultMode", r#"^{"downwardAPI":{"defaultMode":256}}"#).note(MODE),
    served(
        "downwardAPI.items",
        r#"^{"downwardAPI":{"items":[{"path":"p","fieldRef":{"fieldPath":"metadata.labels"},"mode":256}]}}"#,
    ),
    warned(
        "emptyDir.medium",
        r#""Memory""#,
        "has no effect: the files of an emptyDir lie on its node's disk, and count there",
    )
    .only(&["Memory"]),
    refused(
        "emptyDir.medium",
        r#""HugePages""#,
        "the files of an emptyDir lie on its node's disk: leave the field out",
    )
    .all_but(&["Memory"]),
    served("emptyDir.sizeLimit", r#""1Mi""#)
        .note("what does not fit is not written: the write fails for want of space, and an event says so"),
    refused("ephemeral", "{}", NO_CLAIM),
    no_such("fc"),
    no_such("flexVolume"),
    no_such("flocker"),
    no_such("gcePersistentDisk"),
    no_such("gitRepo"),
    no_such("glusterfs"),
    refused(
        "hostPath",
        r#"{"path":"/"}"#,
        "a pod has no access to its node's files: use emptyDir, configMap or secret",
    ),
    refused("image", r#"{"reference":"x:1"}"#, "images are not mounted yet: use a configMap or a secret"),
    no_such("iscsi"),
    served("name", r#""w""#),
    no_such("nfs"),
    refused("persistentVolumeClaim", r#"{"claimName":"a"}"#, NO_CLAIM),
    no_such("photonPersistentDisk"),
    no_such("portworxVolume"),
    refused(
        "projected.sources[].clusterTrustBundle",
        r#"^{"projected":{"sources":[{"clusterTrustBundle":{"name":"a","path":"p"}}]}}"#,
        "there are no ClusterTrustBundles: the cluster's own authority is in the ConfigMap kube-root-ca.crt",
    ),
    served("projected.defaultMode", r#"^{"projected":{"defaultMode":256}}"#).note(MODE),
    served(
        "projected.sources[].configMap",
        r#"^{"projected":{"sources":[{"configMap":{"name":"a","items":[{"key":"k","path":"p"}]}}]}}"#,
    ),
    served(
        "projected.sources[].downwardAPI",
        r#"^{"projected":{"sources":[{"downwardAPI":{"items":[{"path":"p","fieldRef":{"fieldPath":"metadata.name"}}]}}]}}"#,
    ),
    served("projected.sources[].secret", r#"^{"projected":{"sources":[{"secret":{"name":"a"}}]}}"#),
    refused(
        "projected.sources[].serviceAccountToken",
        r#"^{"projected":{"sources":[{"serviceAccountToken":{"path":"p"}}]}}"#,
        "tokens of service accounts are not made yet: leave the source out, or mount a token of `coracle token` as a \
         secret",
    ),
    no_such("quobyte"),
    no_such("rbd"),
    no_such("scaleIO"),
    served("secret.defaultMode", r#"^{"secret":{"secretName":"a","defaultMode":256}}"#).note(MODE),
    served("secret.items", r#"^{"secret":{"secretName":"a","items":[{"key":"k","path":"p","mode":256}]}}"#),
    served("secret.optional", r#"^{"secret":{"secretName":"a","optional":true}}"#),
    served("secret.secretName", r#"^{"secret":{"secretName":"a"}}"#),
    no_such("storageos"),
    no_such("vsphereVolume"),
];

const ITEM: &str = r#"^{"configMap":{"name":"a","items":[{"key":"k","path":"p"}]}}"#;
