//! What a pod's volumes hold, decided without touching a disk. The agent writes it down.
//!
//! Messages and modes as in kubelet's configmap, secret, downwardapi and projected volume plugins.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use bytes::Bytes;

use crate::{
    env::{expand, value_of},
    fields::{self, PodFacts},
    pod::PodState,
    resources,
    sources::{KeyedData, Kind, Sources},
    spec::{Container, DownwardVolume, KeyToPath, Pod, Volume},
};

/// Mode of a file where nothing says otherwise. Source: v1.ConfigMapVolumeSource.
const FILE_MODE_DEFAULT: u32 = 0o644;
/// The files of one pod's volumes together, in bytes: a key may become many files, and a field of the pod too.
const FILES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What each name in a file's path counts beside the path and the bytes: a file takes an inode, and a block, and so does a
/// directory on the way to it.
const NAME_BYTES: usize = 4 * 1024;
/// A path within a volume, expanded, in bytes. Source: PATH_MAX of Linux.
const SUB_PATH_BYTES_MAX: usize = 4096;

/// One volume of a pod, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlan {
    pub name: String,
    pub content: VolumeContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeContent {
    /// An empty directory that lives as long as the pod.
    Empty,
    /// Read-only files by relative path; replaced as a whole when they change.
    Files(BTreeMap<String, VolumeFile>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    pub bytes: Bytes,
    /// Permission bits.
    pub mode: u32,
}

/// A volume where a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    pub volume: String,
    /// Path within the volume, empty for the whole.
    pub sub_path: String,
    /// Absolute path that the guest sees; `.` for the directory in which its relative paths begin.
    pub guest_path: String,
    pub read_only: bool,
    /// None where it is one that only the node writes.
    pub written: Option<WrittenVolume>,
}

impl MountPlan {
    /// Whether it is a folder that the node makes when the container starts. No volume of a pod has such a name.
    pub fn is_made_at_start(&self) -> bool {
        self.volume.starts_with('.')
    }
}

/// A volume that guests write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenVolume {
    /// Bytes that its files may take.
    pub size_limit_bytes: Option<u64>,
}

/// Everything that the content of the pod's volumes hangs on, in short: another fingerprint, other content.
pub type Fingerprint = u64;

/// The fingerprint of the pod's volumes as the sources are now. It costs the same whatever the pod has, as that of
/// its starts.
pub fn fingerprint(pod: &Pod, state: &PodState) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    fingerprinted(pod, state).hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn fingerprinted(pod: &Pod, state: &PodState) -> impl Hash + use<> {
    (pod.outline.of_volumes, state.changes.volumes)
}

/// The content of all volumes of the pod, or the message of a FailedMount event.
pub fn plan(pod: &Pod, sources: &Sources, facts: &PodFacts) -> Result<Vec<VolumePlan>, String> {
    let mut room = FILES_BYTES_MAX;
    let planned = pod.spec.volumes.iter().map(|volume| {
        let content = plan_one(pod, volume, sources, facts, &mut room)
            .map_err(|reason| format!("MountVolume.SetUp failed for volume {:?} : {reason}", volume.name))?;
        Ok(VolumePlan { name: volume.name.clone(), content })
    });
    planned.collect()
}

fn plan_one(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    facts: &PodFacts,
    room: &mut usize,
) -> Result<VolumeContent, String> {
    let namespace = &pod.metadata.namespace;
    let mut files = Files { by_path: BTreeMap::new(), room };
    if volume.empty_dir.is_some() {
        return Ok(VolumeContent::Empty);
    } else if let Some(source) = &volume.config_map {
        let object = Reference::find(sources, Kind::ConfigMap, namespace, &source.name, source.optional)?;
        object.add(&source.items, source.default_mode, &mut files)?;
    } else if let Some(source) = &volume.secret {
        let object = Reference::find(sources, Kind::Secret, namespace, &source.secret_name, source.optional)?;
        object.add(&source.items, source.default_mode, &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        add_downward(pod, facts, source, source.default_mode, &mut files)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in &projected.sources {
            if let Some(source) = &source.config_map {
                let object =
                    Reference::find(sources, Kind::ConfigMap, namespace, &source.name, source.optional)?;
                object.add(&source.items, mode, &mut files)?;
            } else if let Some(source) = &source.secret {
                let object =
                    Reference::find(sources, Kind::Secret, namespace, &source.name, source.optional)?;
                object.add(&source.items, mode, &mut files)?;
            } else if let Some(source) = &source.downward_api {
                add_downward(pod, facts, source, mode, &mut files)?;
            } else {
                let kind = source.other.keys().next().map_or("nothing", String::as_str);
                return Err(format!("a projected source of kind {kind} is not served by this node yet"));
            }
        }
    } else if let Some(kind) = volume.other.keys().next() {
        return Err(format!(
            "volumes of kind {kind} are not served by this node yet; use configMap, secret, emptyDir, downwardAPI \
             or projected"
        ));
    } else {
        // A volume without a source is an emptyDir. Source: API defaults.
        return Ok(VolumeContent::Empty);
    }
    Ok(VolumeContent::Files(files.by_path))
}

/// The files of one volume, as far as the pod has room for them.
struct Files<'a> {
    by_path: BTreeMap<String, VolumeFile>,
    room: &'a mut usize,
}

impl Files<'_> {
    fn add(&mut self, path: &str, bytes: Bytes, mode: u32) -> Result<(), String> {
        let path = checked_path(path)?;
        let names = path.split('/').count();
        *self.room = self.room.checked_sub(names * NAME_BYTES + path.len() + bytes.len()).ok_or_else(|| {
            format!(
                "the files of the pod's volumes take more than {FILES_BYTES_MAX} bytes, with {NAME_BYTES} for each \
                 name in their paths"
            )
        })?;
        self.by_path.insert(path, VolumeFile { bytes, mode });
        Ok(())
    }
}

/// A config map or secret that a volume names.
struct Reference<'a> {
    /// None where it is missing and need not be there.
    found: Option<&'a KeyedData>,
    kind: Kind,
    optional: bool,
}

impl<'a> Reference<'a> {
    fn find(
        sources: &'a Sources,
        kind: Kind,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Self, String> {
        Ok(Self { found: sources.keyed(kind, namespace, name, optional)?, kind, optional })
    }

    fn add(
        &self,
        items: &[KeyToPath],
        default_mode: Option<u32>,
        files: &mut Files<'_>,
    ) -> Result<(), String> {
        let mode = default_mode.unwrap_or(FILE_MODE_DEFAULT);
        let Some(data) = self.found else { return Ok(()) };
        if items.is_empty() {
            for (key, bytes) in data.iter() {
                files.add(key, bytes, mode)?;
            }
        }
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => files.add(&item.path, bytes, item.mode.unwrap_or(mode))?,
                None if self.optional => {}
                None => {
                    let noun = self.kind.noun();
                    return Err(format!("{noun} references non-existent config key: {}", item.key));
                }
            }
        }
        Ok(())
    }
}

fn add_downward(
    pod: &Pod,
    facts: &PodFacts,
    source: &DownwardVolume,
    default_mode: Option<u32>,
    files: &mut Files<'_>,
) -> Result<(), String> {
    for item in &source.items {
        let value = if let Some(reference) = &item.field_ref {
            fields::field(pod, facts, &reference.field_path)?
        } else if let Some(reference) = &item.resource_field_ref {
            fields::resource(pod, facts, None, reference)?
        } else {
            String::new()
        };
        let mode = item.mode.or(default_mode).unwrap_or(FILE_MODE_DEFAULT);
        files.add(&item.path, value.into_bytes().into(), mode)?;
    }
    Ok(())
}

/// A relative path without `..`, that is no link of our own either.
fn checked_path(path: &str) -> Result<String, String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.starts_with("..")
        || path.split('/').any(|part| part == ".." || part.is_empty());
    if bad { Err(format!("invalid path {path:?} in a volume")) } else { Ok(path.to_owned()) }
}

/// Whether the node alone writes it, and guests read it.
pub fn is_written_by_node(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Where a container sees its volumes, or the message of a CreateContainerConfigError.
pub fn mounts(pod: &Pod, container: &Container, env: &[(String, String)]) -> Result<Vec<MountPlan>, String> {
    let volumes: BTreeMap<&str, &Volume> =
        pod.spec.volumes.iter().map(|volume| (volume.name.as_str(), volume)).collect();
    let planned = container.volume_mounts.iter().map(|mount| {
        let Some(volume) = volumes.get(mount.name.as_str()) else {
            return Err(format!("volumeMount {:?} names no volume of the pod", mount.name));
        };
        let sub_path = if mount.sub_path_expr.is_empty() {
            mount.sub_path.clone()
        } else {
            expand(&mount.sub_path_expr, SUB_PATH_BYTES_MAX, |name| value_of(env, name)).ok_or_else(|| {
                format!(
                    "the subPathExpr of the mount at {:?} becomes longer than {SUB_PATH_BYTES_MAX} bytes",
                    mount.mount_path
                )
            })?
        };
        if !sub_path.is_empty() && sub_path.split('/').any(|part| part == "..") || sub_path.starts_with('/') {
            return Err(format!("subPath {sub_path:?} must stay within its volume"));
        }
        let writable = !is_written_by_node(volume);
        let size_limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
        let size_limit_bytes = size_limit.and_then(resources::units).filter(|bytes| *bytes > 0);
        let guest_path = format!("/{}", mount.mount_path.trim_matches('/'));
        Ok(MountPlan {
            volume: mount.name.clone(),
            sub_path,
            guest_path,
            read_only: mount.read_only || !writable,
            written: writable.then_some(WrittenVolume { size_limit_bytes }),
        })
    });
    planned.collect()
}

/// The mount in which a path of the guest lies, the innermost, and the path within its volume.
pub(crate) fn enclosing<'a>(mounts: &'a [MountPlan], path: &str) -> Option<(&'a MountPlan, String)> {
    let below = |mount: &MountPlan| {
        let rest = path.strip_prefix(mount.guest_path.trim_end_matches('/'))?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
    };
    let found = mounts.iter().filter_map(|mount| Some((mount, below(mount)?)));
    let (mount, rest) = found.max_by_key(|(mount, _)| mount.guest_path.len())?;
    let parts = mount.sub_path.split('/').chain(rest.split('/'));
    let parts: Vec<&str> = parts.filter(|part| !matches!(*part, "" | ".")).collect();
    Some((mount, parts.join("/")))
}

/// Where a container's relative paths begin, and the mount by which programs find that; none where they begin at the root.
pub fn working_dir(
    container: &Container,
    mounts: &[MountPlan],
) -> Result<Option<(String, MountPlan)>, String> {
    let parts: Vec<&str> =
        container.working_dir.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let path = format!("/{}", parts.join("/"));
    let found = enclosing(mounts, &path).filter(|_| !parts.contains(&".."));
    let (mount, sub_path) = found.ok_or_else(|| {
        format!("the workingDir {path:?} must lie in a volume that the container mounts: a component has no other files")
    })?;
    Ok(Some((path, MountPlan { sub_path, guest_path: ".".to_owned(), ..mount.clone() })))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sources::{Keyed, Source};

    fn put(sources: &mut Sources, keyed: Keyed) {
        sources.put(("d".into(), "cfg".into()), Source::ConfigMap(keyed));
    }

    fn put_data(sources: &mut Sources, data: KeyedData) {
        put(sources, Keyed::Data(Arc::new(data)));
    }

    fn pod(volumes: &str) -> Pod {
        let json = format!(
            r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u","labels":{{"a":"b"}}}},
                "spec":{{"containers":[{{"name":"c","image":"i","volumeMounts":[{{"name":"v","mountPath":"/etc/x/",
                "subPathExpr":"$(S)"}}]}}],"volumes":[{volumes}]}}}}"#
        );
        Pod::parse(json.as_bytes()).unwrap()
    }

    fn sources(revision: u64) -> Sources {
        let mut sources = Sources::default();
        let data = KeyedData::from_config_map(br#"{"data":{"a":"1","b":"2"}}"#, revision).unwrap();
        put_data(&mut sources, data);
        sources
    }

    fn files(volumes: &str) -> Result<BTreeMap<String, VolumeFile>, String> {
        let plans = plan(&pod(volumes), &sources(1), &PodFacts::default())?;
        match plans.into_iter().next().map(|plan| plan.content) {
            Some(VolumeContent::Files(files)) => Ok(files),
            _ => Ok(BTreeMap::new()),
        }
    }

    #[test]
    fn keys_become_files_with_modes() {
        let all = files(r#"{"name":"v","configMap":{"name":"cfg"}}"#).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].mode, 0o644);
        let some = files(
            r#"{"name":"v","projected":{"defaultMode":256,"sources":[
                {"configMap":{"name":"cfg","items":[{"key":"b","path":"dir/bee"}]}},
                {"downwardAPI":{"items":[{"path":"labels","fieldRef":{"fieldPath":"metadata.labels"},"mode":420}]}},
                {"secret":{"name":"none","optional":true}}]}}"#,
        )
        .unwrap();
        assert_eq!(&*some["dir/bee"].bytes, b"2");
        assert_eq!(some["dir/bee"].mode, 0o400);
        assert_eq!((&*some["labels"].bytes, some["labels"].mode), (b"a=\"b\"".as_slice(), 0o644));
    }

    #[test]
    fn what_cannot_be_mounted_says_why() {
        let error = |volumes: &str| files(volumes).unwrap_err();
        let missing = error(r#"{"name":"v","configMap":{"name":"none"}}"#);
        assert_eq!(missing, "MountVolume.SetUp failed for volume \"v\" : configmap \"none\" not found");
        assert!(error(r#"{"name":"v","hostPath":{"path":"/"}}"#).contains("kind hostPath"));
        let escape = r#"{"name":"v","configMap":{"name":"cfg","items":[{"key":"a","path":"../a"}]}}"#;
        assert!(error(escape).contains("invalid path"));
        assert!(files(r#"{"name":"v","configMap":{"name":"none","optional":true}}"#).unwrap().is_empty());
    }

    #[test]
    fn what_is_withheld_is_waited_for_whether_or_not_it_is_optional() {
        let mut sources = Sources::default();
        put(&mut sources, Keyed::Withheld("too much; less".into()));
        for optional in [true, false] {
            let source = format!(r#""configMap":{{"name":"cfg","optional":{optional}}}"#);
            let projected = format!(r#""projected":{{"sources":[{{{source}}}]}}"#);
            for volume in [source, projected] {
                let pod = pod(&format!(r#"{{"name":"v",{volume}}}"#));
                let message = plan(&pod, &sources, &PodFacts::default()).unwrap_err();
                let expected = "MountVolume.SetUp failed for volume \"v\" : configmap \"cfg\" is not sent to \
                    this node: too much; less";
                assert_eq!(message, expected);
            }
        }
    }

    #[test]
    fn mounts_expand_and_never_leave_their_volume() {
        let pod = pod(r#"{"name":"v","emptyDir":{"sizeLimit":"1Mi"}}"#);
        let container = &pod.spec.containers[0];
        let env = |value: &str| vec![("S".to_owned(), value.to_owned())];
        let mount = &mounts(&pod, container, &env("sub")).unwrap()[0];
        assert_eq!((mount.sub_path.as_str(), mount.guest_path.as_str()), ("sub", "/etc/x"));
        assert!(!mount.read_only);
        assert_eq!(mount.written, Some(WrittenVolume { size_limit_bytes: Some(1 << 20) }));
        assert!(mounts(&pod, container, &env("../sub")).is_err());
        let long = mounts(&pod, container, &env(&"x".repeat(SUB_PATH_BYTES_MAX + 1))).unwrap_err();
        assert_eq!(long, "the subPathExpr of the mount at \"/etc/x/\" becomes longer than 4096 bytes");
    }

    #[test]
    fn relative_paths_begin_in_a_volume_that_is_mounted() {
        let mount = |guest_path: &str, sub_path: &str| MountPlan {
            volume: "v".into(),
            sub_path: sub_path.into(),
            guest_path: guest_path.into(),
            read_only: true,
            written: None,
        };
        let mounts = [mount("/app", "here"), mount("/app/own", "")];
        let found = |dir: &str| {
            let container = Container { working_dir: dir.into(), ..Container::default() };
            let found = working_dir(&container, &mounts);
            found.map(|found| found.map(|(path, mount)| (path, mount.sub_path, mount.guest_path)))
        };
        let at =
            |path: &str, sub_path: &str| Ok(Some((path.to_owned(), sub_path.to_owned(), ".".to_owned())));
        assert_eq!(found(""), Ok(None));
        assert_eq!(found("/"), Ok(None));
        assert_eq!(found("/app"), at("/app", "here"));
        assert_eq!(found("/app/./a//b/"), at("/app/a/b", "here/a/b"));
        assert_eq!(found("/app/own/a"), at("/app/own/a", "a"));
        for dir in ["/application", "/else", "/app/../else"] {
            assert!(found(dir).unwrap_err().contains("must lie in a volume"), "{dir}");
        }
    }

    #[test]
    fn a_key_that_becomes_many_files_is_bounded() {
        let items_below = |dirs: usize, key: &str, count: usize| {
            let below = "d/".repeat(dirs);
            let items: Vec<String> =
                (0..count).map(|at| format!(r#"{{"key":"{key}","path":"{below}f{at}"}}"#)).collect();
            pod(&format!(r#"{{"name":"v","configMap":{{"name":"cfg","items":[{}]}}}}"#, items.join(",")))
        };
        let items = |key: &str, count| items_below(0, key, count);
        let mut sources = sources(1);
        let json = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(1 << 20));
        let data = KeyedData::from_config_map(json.as_bytes(), 1).unwrap();
        put_data(&mut sources, data);
        assert!(plan(&items("a", 63), &sources, &PodFacts::default()).is_ok());
        // Of files with nothing in them there are so many at most.
        let none = KeyedData::from_config_map(br#"{"data":{"a":""}}"#, 1).unwrap();
        let mut empty = Sources::default();
        put_data(&mut empty, none);
        assert!(plan(&items("a", 16_000), &empty, &PodFacts::default()).is_ok());
        assert!(plan(&items("a", 17_000), &empty, &PodFacts::default()).is_err());
        // So it is with directories.
        assert!(plan(&items_below(999, "a", 16), &empty, &PodFacts::default()).is_ok());
        assert!(plan(&items_below(999, "a", 17), &empty, &PodFacts::default()).is_err());
        let message = plan(&items("a", 64), &sources, &PodFacts::default()).unwrap_err();
        assert!(
            message.ends_with(
                "the files of the pod's volumes take more than 67108864 bytes, with 4096 for each name in their paths"
            ),
            "{message}"
        );
    }
}
