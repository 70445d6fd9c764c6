//! The two wasmtime engines, their pools and the machine's limits that bind them.
//!
//! One engine serves components of WASI 0.2 only, without the structures that concurrency within a store needs (about
//! a tenth faster a request); the other serves 0.3. Both take instances from pools: a slot is reused without giving
//! its memory back to the kernel, which is the greatest single lever on start times.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

use wasmtime::component::Component;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::HostError;
use crate::limits::TABLE_ELEMENTS_MAX;

/// Instances of a host that says no number, where the machine's limits admit them.
const INSTANCES_DEFAULT: u32 = 4_000;

/// A host that cannot have so many is not worth starting.
const INSTANCES_MIN: u32 = 16;

/// Memory mappings that an instance takes for good once its slot was used: four of its memory.
const MAPS_PER_MEMORY: u64 = 4;

/// Memory mappings of a stack, made with the engine.
const MAPS_PER_STACK: u64 = 2;

/// Stacks for each seat of an instance of the 0.3 engine: of a call that waits, and of what runs meanwhile. Requests that share
/// an instance need no more, since wasmtime lets none in where another waits within a call. How many calls may wait in a
/// composition is reckoned before it is compiled.
pub(crate) const P3_STACKS: u32 = 2;

/// What one instance more that the host admits takes. Whoever comes may need either engine, so both have a slot for it.
const MAPS_PER_INSTANCE: u64 = 2 * MAPS_PER_MEMORY + (1 + P3_STACKS as u64) * MAPS_PER_STACK;

/// Mappings left for everything else: threads, compiled code, the allocator. Past the limit a malloc aborts.
const MAPS_RESERVED: u64 = 3_000;

/// Kept resident in a slot that is free, so that its next instance takes no page faults.
const MEMORY_KEEP_RESIDENT: usize = 256 << 10;
const TABLE_KEEP_RESIDENT: usize = 64 << 10;
const STACK_KEEP_RESIDENT: usize = 64 << 10;

/// Bytes of a core instance's and of a component instance's structures.
const INSTANCE_BYTES_MAX: usize = 10 << 20;

/// Core instances, memories and tables that one component may have.
const CORE_INSTANCES_MAX: u32 = 200;
pub(crate) const MEMORIES_MAX: u32 = 32;
pub(crate) const TABLES_MAX: u32 = 64;

/// Tables of the pool for each of its instances.
const TABLES_PER_SEAT: u32 = 2;

/// Frames that a trap's backtrace holds.
const BACKTRACE_FRAMES_MAX: usize = 32;

const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// Which of the two engines a component needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WasiVersion {
    /// 0.2, and core modules of preview 1.
    P2,
    /// 0.3, with 0.2 beside it.
    P3,
}

impl WasiVersion {
    pub(crate) fn name(self) -> &'static str {
        match self {
            WasiVersion::P2 => "p2",
            WasiVersion::P3 => "p3",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<WasiVersion> {
        [WasiVersion::P2, WasiVersion::P3].into_iter().find(|version| version.name() == name)
    }
}

/// Both engines of a host.
pub(crate) struct Engines {
    pub(crate) p2: Engine,
    pub(crate) p3: Engine,
    /// Live instances that the host admits, of both engines together; each has as many slots.
    pub(crate) instances_max: u32,
}

impl Engines {
    /// Makes both engines for `instances` live instances, or as many as fit where it is 0.
    ///
    /// Fails where a number was asked for that the machine's limit of memory mappings cannot hold.
    pub(crate) fn new(instances: u32) -> Result<Engines, HostError> {
        let instances_max = preflight(instances, max_map_count())?;
        let p2 = pooled(WasiVersion::P2, instances_max)?;
        let p3 = pooled(WasiVersion::P3, instances_max)?;
        Ok(Engines { p2, p3, instances_max })
    }

    pub(crate) fn of(&self, version: WasiVersion) -> &Engine {
        match version {
            WasiVersion::P2 => &self.p2,
            WasiVersion::P3 => &self.p3,
        }
    }

    /// Lets running guests reach their epoch callback.
    pub(crate) fn tick(&self) {
        self.p2.increment_epoch();
        self.p3.increment_epoch();
    }
}

/// How many seats an instance of the component takes, by its memories and tables; at least one.
pub(crate) fn weight(component: &Component) -> u32 {
    // A component whose needs are not known before imports modules, which the linker has none of.
    component.resources_required().map_or(MEMORIES_MAX, |needs| seats(needs.num_memories, needs.num_tables))
}

/// The seats of so many memories and tables.
pub(crate) fn seats(memories: u32, tables: u32) -> u32 {
    memories.max(tables.div_ceil(TABLES_PER_SEAT)).max(1)
}

/// What compiled code of an engine is compatible with: part of the cache's keys.
pub(crate) fn compatibility(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// An engine that only compiles: its output runs on the pooled engine of the same version.
pub(crate) fn compiling(version: WasiVersion) -> wasmtime::Result<Engine> {
    Engine::new(&config(version))
}

fn config(version: WasiVersion) -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    config.concurrency_support(version == WasiVersion::P3);
    if version == WasiVersion::P3 {
        config.wasm_component_model_async(true);
    }
    config.epoch_interruption(true);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    // Backtraces name functions, which needs neither of these; both would only enlarge the compiled code.
    config.generate_address_map(false);
    config.native_unwind_info(false);
    config
}

fn pooled(version: WasiVersion, instances: u32) -> Result<Engine, HostError> {
    let mut config = config(version);
    let stacks = match version {
        WasiVersion::P2 => instances,
        WasiVersion::P3 => instances.saturating_mul(P3_STACKS),
    };
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A count only, which takes no memory: what an instance's seats are weighed by is its memories and tables.
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_PER_SEAT))
        .total_stacks(stacks)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_memories_per_module(MEMORIES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT)
        .async_stack_keep_resident(STACK_KEEP_RESIDENT)
        .pagemap_scan(Enabled::Auto);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    match Engine::new(&config) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            // Limits of the address space (a ulimit, a small virtual machine) forbid the pool, not running guests.
            tracing::warn!(version = version.name(), instances, %error, "instance pool refused, allocating on demand");
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            Engine::new(&config).map_err(|error| HostError::Engine { message: format!("{error:#}") })
        }
    }
}

fn max_map_count() -> Option<u64> {
    std::fs::read_to_string(MAX_MAP_COUNT).ok()?.trim().parse().ok()
}

/// How many instances to make room for. `wanted` 0 is as many as fit, up to the default.
fn preflight(wanted: u32, map_count: Option<u64>) -> Result<u32, HostError> {
    let Some(map_count) = map_count else {
        return Ok(if wanted == 0 { INSTANCES_DEFAULT } else { wanted });
    };
    let fits = |instances: u32| mappings(instances) <= map_count;
    if wanted > 0 {
        return if fits(wanted) {
            Ok(wanted)
        } else {
            Err(HostError::MapCount { instances: wanted, needed: mappings(wanted), present: map_count })
        };
    }
    let room = map_count.saturating_sub(MAPS_RESERVED) / MAPS_PER_INSTANCE;
    let instances = u32::try_from(room).unwrap_or(u32::MAX).min(INSTANCES_DEFAULT);
    if instances < INSTANCES_MIN {
        let needed = mappings(INSTANCES_MIN);
        return Err(HostError::MapCount { instances: INSTANCES_MIN, needed, present: map_count });
    }
    Ok(instances)
}

/// Mappings of the process with all instances alive.
fn mappings(instances: u32) -> u64 {
    u64::from(instances) * MAPS_PER_INSTANCE + MAPS_RESERVED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_instances_are_refused_with_the_mend() {
        assert_eq!(preflight(0, Some(65_530)).expect("fits"), INSTANCES_DEFAULT);
        assert_eq!(preflight(1_000, Some(65_530)).expect("fits"), 1_000);
        let message = preflight(20_000, Some(65_530)).expect_err("too many").to_string();
        assert!(message.contains("sysctl -w vm.max_map_count="), "{message}");
        let small = preflight(0, Some(10_000)).expect("fits");
        assert!(mappings(small) <= 10_000 && small > 100, "{small}");
    }

    #[test]
    fn components_take_seats_by_their_memories_and_tables() {
        let engine = compiling(WasiVersion::P2).expect("an engine");
        let of = |text: &str| {
            let wasm = wat::parse_str(text).expect("valid text");
            weight(&Component::new(&engine, wasm).expect("a component"))
        };
        assert_eq!(of("(component)"), 1);
        let memories = "(component (core module $m (memory 1) (table 1 funcref))
            (core instance (instantiate $m)) (core instance (instantiate $m)) (core instance (instantiate $m)))";
        assert_eq!(of(memories), 3);
        let tables = "(component (core module $m (table 1 funcref) (table 1 funcref) (table 1 funcref))
            (core instance (instantiate $m)))";
        assert_eq!(of(tables), 2);
    }

    #[test]
    fn a_compiling_engine_makes_code_for_the_pooled_one() {
        for version in [WasiVersion::P2, WasiVersion::P3] {
            let pooled = pooled(version, INSTANCES_MIN).expect("an engine");
            let compiling = compiling(version).expect("an engine");
            assert_eq!(compatibility(&pooled), compatibility(&compiling));
            assert_eq!(WasiVersion::from_name(version.name()), Some(version));
        }
    }
}
