//! From a model's path and a budget to a context that keeps to it.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use llama_rs::{
    Backend, Context, ContextParams, LoadMode, LoadedWeight, LoraAdapter, Model, ModelParams,
    Prefetch, SliceProvider,
};

use crate::Budget;
use crate::arrivals::Arrivals;
use crate::counters::CountersSnapshot;
use crate::engine::{
    EngineError, EngineReport, Faults, ModelFiles, Preference, ReadError, open_engine,
    open_faulty_engine,
};
use crate::lookahead::Lookahead;
use crate::pinned::Pinned;
use crate::plan::{Demand, MemoryPlan, Pages, PlanError};
use crate::policy::{PolicyName, policy_for};
use crate::pool::{Census, Pool};
use crate::provider::{Ahead, Before, Loaded, Program, Provider, Pump};
use crate::replay::{Kept, Recorder, Replay, ReplayReport};
use crate::slices::{DenseTensor, SliceId, Slices, TooManySlices};
use crate::weights::{Reading, WeightMemory};

/// Why a model cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The budget does not do.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The files cannot be read in the pager's way.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model's tables.
    #[error(transparent)]
    Slices(#[from] TooManySlices),
    /// llama.cpp, or the model.
    #[error(transparent)]
    Llama(#[from] llama_rs::Error),
    /// A read of weights that stay in memory failed.
    #[error(transparent)]
    Read(#[from] Box<ReadError>),
    /// The system has no memory, or does not say how much there is.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// How a model is paged.
#[derive(Clone, Debug, Default)]
pub struct PagerOptions {
    /// All memory that the process may use for the model.
    pub budget: Budget,
    /// What is evicted.
    pub policy: PolicyName,
    /// Which experts are read before the router has picked them. Those of the next layer, while the device has nothing else to do.
    pub lookahead: Lookahead,
    /// Whether a start reads what the last run needed first, in that order, and while it still loads. Contexts of a model that was loaded
    /// without it do without it, too.
    pub replay: Replay,
    /// How it is read.
    pub reads: Preference,
    /// Memory of the process that is not for this model and counts in the budget. `None`: the anonymous memory that it has
    /// when the model is loaded.
    pub process_bytes: Option<u64>,
    /// Whether dense matrices are read when a context is attached, so that its plan decides how many of them stay in memory.
    /// So it is in any case for a model without experts, and where the dense weights are larger than the budget.
    pub dense_on_demand: bool,
}

impl PagerOptions {
    /// This budget, and the default of everything else.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use pager::PagerOptions;
    ///
    /// let options = PagerOptions::with_budget("7GiB".parse()?);
    /// let with_lru = PagerOptions { policy: "lru".parse()?, ..options };
    /// assert_eq!(with_lru.budget.to_string(), "7516192768");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_budget(budget: Budget) -> PagerOptions {
        PagerOptions {
            budget,
            ..PagerOptions::default()
        }
    }
}

/// A model whose dense weights are in memory and whose experts are read into slots. Of a model without experts, or one whose
/// dense weights are larger than the budget, as many matrices are in memory as fit, and the others are read for each token.
///
/// ```no_run
/// use llama_rs::{Backend, ContextParams, ModelParams};
/// use pager::{PagedModel, PagerOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = PagerOptions::with_budget("7GiB".parse()?);
/// let paged = PagedModel::load(&Backend::init(), "model.gguf", &ModelParams::default(), options)?;
/// let (mut context, pager) = paged.context(&ContextParams::default())?;
/// println!("{}", pager.plan());
/// # let _ = &mut context;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PagedModel {
    model: Model,
    files: Arc<ModelFiles>,
    slices: Slices,
    options: PagerOptions,
    budget_bytes: u64,
    /// What of the budget is not for the model.
    process_bytes: u64,
    arrivals: Arc<Arrivals>,
    kept: Kept,
    /// Dense matrices that stay in memory, as the last plan has it.
    pinned: Mutex<Option<Arc<Pinned>>>,
}

impl PagedModel {
    /// Reads the dense weights of the model at `path`; their matrices not before [`attach`](PagedModel::attach) if they may have
    /// to be streamed, as in every model without experts. With [`ModelParams::repack`] weights that llama.cpp has repacked kernels
    /// for are repacked where they are, experts when they arrive in their slots. What `params` says of prefetch and load mode does
    /// not count.
    ///
    /// # Errors
    ///
    /// See [`PagerError`].
    pub fn load(
        backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        options: PagerOptions,
    ) -> Result<PagedModel, PagerError> {
        PagedModel::load_with(
            backend,
            path,
            params,
            options,
            |_| ControlFlow::Continue(()),
        )
    }

    /// As [`load`](PagedModel::load), with progress as in [`Model::load_with`].
    ///
    /// # Errors
    ///
    /// As [`load`](PagedModel::load).
    pub fn load_with(
        backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        options: PagerOptions,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<PagedModel, PagerError> {
        let path = path.as_ref();
        let tables = gguf::ModelFiles::open(path).map_err(llama_rs::Error::from)?;
        let mut slices = Slices::new(&tables)?;
        let system = |what| move |source| PagerError::System { what, source };
        let budget_bytes = options
            .budget
            .resolve(tables.total_bytes())
            .map_err(system("it cannot be told how much memory is free"))?;
        let process_bytes = match options.process_bytes {
            Some(bytes) => bytes,
            None => anonymous_bytes().map_err(system("/proc/self/status"))?,
        };
        if options.dense_on_demand || process_bytes + slices.dense_bytes() > budget_bytes {
            slices = slices.with_dense_on_demand();
        }
        let files = Arc::new(ModelFiles::open(
            tables.parts.iter().map(|part| part.path()),
        )?);
        let kept = Kept::of(&options.replay, path, &files, &slices);
        let reading = match &kept.store {
            Some(_) => Reading::AtOnce(kept.pattern.as_ref()),
            None => Reading::WhenMapped,
        };
        let memory = WeightMemory::new(Arc::clone(&files), &slices, options.reads, reading);
        let memory = memory.map_err(|reason| PagerError::System {
            what: "the memory of dense weights",
            source: std::io::Error::other(reason),
        })?;
        let arrivals = Arc::clone(memory.arrivals());
        let params = ModelParams {
            prefetch: Prefetch::Selective,
            load_mode: LoadMode::Mmap,
            ..params.clone()
        };
        let model = Model::load_into(backend, path, &params, memory, progress)?;
        // Whoever has read the metadata has read ahead.
        drop_page_cache(tables.parts.iter().map(|part| part.path()));
        Ok(PagedModel {
            model,
            files,
            slices,
            options,
            budget_bytes,
            process_bytes,
            arrivals,
            kept,
            pinned: Mutex::new(None),
        })
    }

    /// The model, to make contexts of.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Loads an adapter, for [`Context::set_lora`]. It is in memory as a whole, and the budget pays for it.
    ///
    /// # Errors
    ///
    /// As [`LoraAdapter::load`], and [`PagerError::System`] if the size of the file cannot be told.
    pub fn load_adapter(&mut self, path: impl AsRef<Path>) -> Result<LoraAdapter, PagerError> {
        let path = path.as_ref();
        let adapter = LoraAdapter::load(&mut self.model, path)?;
        let metadata = std::fs::metadata(path).map_err(|source| PagerError::System {
            what: "the size of the adapter",
            source,
        })?;
        self.process_bytes += metadata.len();
        Ok(adapter)
    }

    /// A new context that reads its experts within the budget: [`Context::new`] and [`attach`](PagedModel::attach).
    ///
    /// # Errors
    ///
    /// As of these.
    pub fn context(&self, params: &ContextParams) -> Result<(Context<'_>, Pager), PagerError> {
        let mut context = Context::new(&self.model, params)?;
        let pager = self.attach(&mut context)?;
        Ok((context, pager))
    }

    /// Gives what is left of the budget to slots, and lets the context read its experts there. Reads the dense matrices that
    /// stay in memory, if that was left to the plan, and begins to read ahead those that do not. One context at a time: each one
    /// that is attached plans as if it were alone.
    ///
    /// # Errors
    ///
    /// [`PagerError::Plan`] when too little is left; it names the smallest budget that works. [`PagerError::Read`] if weights
    /// cannot be read.
    pub fn attach(&self, context: &mut Context<'_>) -> Result<Pager, PagerError> {
        self.attach_with(context, &self.options, self.budget_bytes, None)
    }

    /// As [`attach`](PagedModel::attach), with other options than those of loading, and faults between the device and everything
    /// that has to stand them: for tests.
    ///
    /// # Errors
    ///
    /// As [`attach`](PagedModel::attach).
    pub fn attach_faulty(
        &self,
        context: &mut Context<'_>,
        options: PagerOptions,
        faults: Faults,
    ) -> Result<Pager, PagerError> {
        let budget = options.budget.resolve(self.model.files().total_bytes());
        let budget_bytes = budget.map_err(|source| PagerError::System {
            what: "it cannot be told how much memory is free",
            source,
        })?;
        self.attach_with(context, &options, budget_bytes, Some(faults))
    }

    fn attach_with(
        &self,
        context: &mut Context<'_>,
        options: &PagerOptions,
        budget_bytes: u64,
        faults: Option<Faults>,
    ) -> Result<Pager, PagerError> {
        let buffers = context.memory_breakdown()?;
        let n_vocab = u64::from(self.model.vocab().n_tokens());
        let demand = Demand {
            kv_bytes: buffers.iter().map(|buffer| buffer.context_bytes).sum(),
            compute_bytes: buffers.iter().map(|buffer| buffer.compute_bytes).sum(),
            // Logits are kept twice, as numbers of four bytes; one output at a time is what generating takes.
            outputs_bytes: 8 * n_vocab,
            process_bytes: self.process_bytes + llama_rs::repacked_bytes(&buffers),
            staging_bytes: 0,
            n_ubatch: context.n_ubatch(),
        };
        let plan = MemoryPlan::new(&self.slices, budget_bytes, &demand, Pages::default())?;
        let pool_slices = plan.pool_slices(&self.slices);
        let policy = policy_for(options.policy, &pool_slices);
        let pool = Pool::new(pool_slices, &plan.class_slots(), policy);
        // Registering would allocate all slots at once, for little: docs/pager.md.
        let mut reads = Preference {
            register: false,
            ..options.reads
        };
        if self.slices.is_empty() {
            // All reads are ahead, and all are needed.
            reads.prefetch_depth = reads.depth;
            reads.prefetch_request_bytes_max = reads.request_bytes_max;
            reads.in_flight_bytes = u32::MAX;
        }
        let weights = self.model.weights();
        let pinned = self.pin(&plan, reads, &weights)?;
        let files = Arc::clone(&self.files);
        let (engine, report) = match faults {
            None => open_engine(files, None, reads)?,
            Some(faults) => open_faulty_engine(files, None, reads, faults)?,
        };
        let kept = match options.replay {
            Replay::Off => None,
            Replay::In(_) => Some(&self.kept),
        };
        let before = Before {
            ahead: Ahead::new(&self.slices, &options.lookahead),
            n_embd: self.model.n_embd() as usize,
            program: kept.and_then(|kept| {
                let pattern = kept.pattern.as_ref()?;
                let slices = pattern.program().into_iter().map(SliceId).collect();
                Some(Program::new(slices, pattern.n_first()))
            }),
            recorder: kept.and_then(|kept| {
                let store = kept.store.clone()?;
                Some(Recorder::new(store, self.slices.len()))
            }),
        };
        let provider = Provider::new(
            self.slices.clone(),
            &plan,
            pool,
            Loaded {
                weights,
                arrivals: Arc::clone(&self.arrivals),
                pinned,
            },
            engine,
            before,
        );
        let provider = Arc::new(provider.map_err(|source| PagerError::System {
            what: "no memory for slots",
            source,
        })?);
        context.set_slice_provider(Arc::clone(&provider))?;
        provider.start_reading();
        Ok(Pager {
            _pump: Pump::start(&provider),
            replay: kept.map_or(ReplayReport::Off, |kept| kept.report.clone()),
            provider,
            plan,
            report,
        })
    }

    /// The matrices that the plan keeps in memory; reads them, unless that was done for an earlier plan.
    fn pin(
        &self,
        plan: &MemoryPlan,
        reads: Preference,
        weights: &[LoadedWeight],
    ) -> Result<Option<Arc<Pinned>>, PagerError> {
        let is_streamed = |index: &usize| match &plan.dense_stream {
            Some(stream) => stream.streamed.contains(index),
            None => false,
        };
        let stay = self
            .slices
            .on_demand()
            .filter(|(index, _)| !is_streamed(index));
        let stay: Vec<(usize, &DenseTensor)> = stay.collect();
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if stay.is_empty() {
            *pinned = None;
            return Ok(None);
        }
        if let Some(known) = pinned.as_ref().filter(|known| known.holds(&stay)) {
            return Ok(Some(Arc::clone(known)));
        }
        // Both would not fit.
        *pinned = None;
        let (engine, _) = open_engine(Arc::clone(&self.files), None, reads)?;
        let packing_of = |tensor: &DenseTensor| self.slices.packing(weights, tensor.tensor);
        let read = Arc::new(Pinned::read(&self.files, &stay, engine, packing_of)?);
        Ok(Some(Arc::clone(pinned.insert(read))))
    }
}

/// The slots of a context: what was planned, and what happens.
pub struct Pager {
    /// Before the provider.
    _pump: Option<Pump>,
    replay: ReplayReport,
    provider: Arc<Provider>,
    plan: MemoryPlan,
    report: EngineReport,
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pager")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl Pager {
    /// What lives where.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// How slices are read, and why so.
    pub fn reads(&self) -> &EngineReport {
        &self.report
    }

    /// What was known of the last run.
    pub fn replay(&self) -> &ReplayReport {
        &self.replay
    }

    /// What happened so far.
    pub fn counters(&self) -> CountersSnapshot {
        self.provider.counters().snapshot()
    }

    /// What the engine has done so far.
    pub fn read_counters(&self) -> crate::engine::Counters {
        self.provider.engine_counters()
    }

    /// Where the slots are, when the reads under way have ended. After a decode that went well nothing is pinned; one that
    /// failed leaves pins, which the next one takes away.
    pub fn census(&self) -> Census {
        self.provider.census()
    }

    /// Why the last decode failed, if nobody has asked yet.
    pub fn take_reason(&self) -> Option<String> {
        self.provider.take_reason()
    }
}

/// Resident anonymous memory of this process.
fn anonymous_bytes() -> std::io::Result<u64> {
    resident::Status::own()?.bytes("RssAnon")
}

/// Gives back what the page cache holds of the files. Advice: whoever else has them mapped keeps them.
fn drop_page_cache<'a>(paths: impl Iterator<Item = &'a Path>) {
    for file in paths.filter_map(|path| std::fs::File::open(path).ok()) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}
