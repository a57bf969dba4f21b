import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class DerivationRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DERIVATION_RULE_UNSPECIFIED: _ClassVar[DerivationRule]
    DERIVATION_RULE_TOP2_PAIRS: _ClassVar[DerivationRule]
    DERIVATION_RULE_DARTS: _ClassVar[DerivationRule]
    DERIVATION_RULE_SAMPLE: _ClassVar[DerivationRule]

class BatchStatistics(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_STATISTICS_UNSPECIFIED: _ClassVar[BatchStatistics]
    BATCH_STATISTICS_TRANSDUCTIVE: _ClassVar[BatchStatistics]
    BATCH_STATISTICS_INDUCTIVE: _ClassVar[BatchStatistics]

class FailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_REASON_UNSPECIFIED: _ClassVar[FailureReason]
    FAILURE_REASON_INVALID_INPUT: _ClassVar[FailureReason]
    FAILURE_REASON_NOT_FOUND: _ClassVar[FailureReason]
    FAILURE_REASON_CORRUPT_ARTIFACT: _ClassVar[FailureReason]
    FAILURE_REASON_ADAPTATION_FAILED: _ClassVar[FailureReason]
    FAILURE_REASON_ATTEMPTS_EXHAUSTED: _ClassVar[FailureReason]
    FAILURE_REASON_RESOURCE_UNAVAILABLE: _ClassVar[FailureReason]
    FAILURE_REASON_DEADLINE_EXCEEDED: _ClassVar[FailureReason]
    FAILURE_REASON_INTERNAL: _ClassVar[FailureReason]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
DERIVATION_RULE_UNSPECIFIED: DerivationRule
DERIVATION_RULE_TOP2_PAIRS: DerivationRule
DERIVATION_RULE_DARTS: DerivationRule
DERIVATION_RULE_SAMPLE: DerivationRule
BATCH_STATISTICS_UNSPECIFIED: BatchStatistics
BATCH_STATISTICS_TRANSDUCTIVE: BatchStatistics
BATCH_STATISTICS_INDUCTIVE: BatchStatistics
FAILURE_REASON_UNSPECIFIED: FailureReason
FAILURE_REASON_INVALID_INPUT: FailureReason
FAILURE_REASON_NOT_FOUND: FailureReason
FAILURE_REASON_CORRUPT_ARTIFACT: FailureReason
FAILURE_REASON_ADAPTATION_FAILED: FailureReason
FAILURE_REASON_ATTEMPTS_EXHAUSTED: FailureReason
FAILURE_REASON_RESOURCE_UNAVAILABLE: FailureReason
FAILURE_REASON_DEADLINE_EXCEEDED: FailureReason
FAILURE_REASON_INTERNAL: FailureReason

class Study(_message.Message):
    __slots__ = ("name", "config", "create_time", "prior_version", "prior_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIOR_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    config: _struct_pb2.Struct
    create_time: _timestamp_pb2.Timestamp
    prior_version: int
    prior_sha256: str
    def __init__(self, name: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., prior_version: _Optional[int] = ..., prior_sha256: _Optional[str] = ...) -> None: ...

class CreateStudyRequest(_message.Message):
    __slots__ = ("study_id", "preset", "config", "overrides", "validate_only")
    STUDY_ID_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    study_id: str
    preset: str
    config: _struct_pb2.Struct
    overrides: _containers.RepeatedScalarFieldContainer[str]
    validate_only: bool
    def __init__(self, study_id: _Optional[str] = ..., preset: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., overrides: _Optional[_Iterable[str]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class CreateStudyResponse(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: Study
    def __init__(self, study: _Optional[_Union[Study, _Mapping]] = ...) -> None: ...

class GetStudyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetStudyResponse(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: Study
    def __init__(self, study: _Optional[_Union[Study, _Mapping]] = ...) -> None: ...

class ListStudiesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListStudiesResponse(_message.Message):
    __slots__ = ("studies", "next_page_token")
    STUDIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    studies: _containers.RepeatedCompositeFieldContainer[Study]
    next_page_token: str
    def __init__(self, studies: _Optional[_Iterable[_Union[Study, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DataSource(_message.Message):
    __slots__ = ("builtin", "dataset", "url")
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    builtin: str
    dataset: str
    url: str
    def __init__(self, builtin: _Optional[str] = ..., dataset: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class AdaptSpec(_message.Message):
    __slots__ = ("data", "classes", "num_ways", "image_size", "train_per_class", "test_per_class", "steps", "prior_version", "seed", "derivation", "max_params", "max_macs", "contribute", "fine_tune_steps", "max_latency_ms", "latency_table_json")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    NUM_WAYS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_PER_CLASS_FIELD_NUMBER: _ClassVar[int]
    TEST_PER_CLASS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DERIVATION_FIELD_NUMBER: _ClassVar[int]
    MAX_PARAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_MACS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_TABLE_JSON_FIELD_NUMBER: _ClassVar[int]
    data: DataSource
    classes: _containers.RepeatedScalarFieldContainer[str]
    num_ways: int
    image_size: int
    train_per_class: int
    test_per_class: int
    steps: int
    prior_version: int
    seed: int
    derivation: DerivationRule
    max_params: int
    max_macs: int
    contribute: bool
    fine_tune_steps: int
    max_latency_ms: float
    latency_table_json: str
    def __init__(self, data: _Optional[_Union[DataSource, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ..., num_ways: _Optional[int] = ..., image_size: _Optional[int] = ..., train_per_class: _Optional[int] = ..., test_per_class: _Optional[int] = ..., steps: _Optional[int] = ..., prior_version: _Optional[int] = ..., seed: _Optional[int] = ..., derivation: _Optional[_Union[DerivationRule, str]] = ..., max_params: _Optional[int] = ..., max_macs: _Optional[int] = ..., contribute: _Optional[bool] = ..., fine_tune_steps: _Optional[int] = ..., max_latency_ms: _Optional[float] = ..., latency_table_json: _Optional[str] = ...) -> None: ...

class MetaTrainSpec(_message.Message):
    __slots__ = ("until_version",)
    UNTIL_VERSION_FIELD_NUMBER: _ClassVar[int]
    until_version: int
    def __init__(self, until_version: _Optional[int] = ...) -> None: ...

class EvaluateSpec(_message.Message):
    __slots__ = ("data", "genotype_json", "preset", "overrides")
    DATA_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    data: DataSource
    genotype_json: str
    preset: str
    overrides: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, data: _Optional[_Union[DataSource, _Mapping]] = ..., genotype_json: _Optional[str] = ..., preset: _Optional[str] = ..., overrides: _Optional[_Iterable[str]] = ...) -> None: ...

class SweepSpec(_message.Message):
    __slots__ = ("config", "architectures", "data")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    config: _struct_pb2.Struct
    architectures: _containers.RepeatedCompositeFieldContainer[ScoredGenotype]
    data: DataSource
    def __init__(self, config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., architectures: _Optional[_Iterable[_Union[ScoredGenotype, _Mapping]]] = ..., data: _Optional[_Union[DataSource, _Mapping]] = ...) -> None: ...

class FewShotImage(_message.Message):
    __slots__ = ("name", "label", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class FewShotSpec(_message.Message):
    __slots__ = ("support", "queries", "steps", "prior_version", "statistics", "seed")
    SUPPORT_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    support: _containers.RepeatedCompositeFieldContainer[FewShotImage]
    queries: _containers.RepeatedCompositeFieldContainer[FewShotImage]
    steps: int
    prior_version: int
    statistics: BatchStatistics
    seed: int
    def __init__(self, support: _Optional[_Iterable[_Union[FewShotImage, _Mapping]]] = ..., queries: _Optional[_Iterable[_Union[FewShotImage, _Mapping]]] = ..., steps: _Optional[int] = ..., prior_version: _Optional[int] = ..., statistics: _Optional[_Union[BatchStatistics, str]] = ..., seed: _Optional[int] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("adapt", "meta_train", "evaluate", "sweep", "few_shot")
    ADAPT_FIELD_NUMBER: _ClassVar[int]
    META_TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    SWEEP_FIELD_NUMBER: _ClassVar[int]
    FEW_SHOT_FIELD_NUMBER: _ClassVar[int]
    adapt: AdaptSpec
    meta_train: MetaTrainSpec
    evaluate: EvaluateSpec
    sweep: SweepSpec
    few_shot: FewShotSpec
    def __init__(self, adapt: _Optional[_Union[AdaptSpec, _Mapping]] = ..., meta_train: _Optional[_Union[MetaTrainSpec, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateSpec, _Mapping]] = ..., sweep: _Optional[_Union[SweepSpec, _Mapping]] = ..., few_shot: _Optional[_Union[FewShotSpec, _Mapping]] = ...) -> None: ...

class ScoredGenotype(_message.Message):
    __slots__ = ("genotype_json", "probability")
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    genotype_json: str
    probability: float
    def __init__(self, genotype_json: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("step", "accuracy", "loss_nats")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LOSS_NATS_FIELD_NUMBER: _ClassVar[int]
    step: int
    accuracy: float
    loss_nats: float
    def __init__(self, step: _Optional[int] = ..., accuracy: _Optional[float] = ..., loss_nats: _Optional[float] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "num_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class AdaptResult(_message.Message):
    __slots__ = ("prior_version", "genotype_json", "genotype_probability", "top_genotypes", "entropy_nats", "accuracy", "num_params", "num_macs", "evaluations", "contributed_version", "fine_tuned", "latency_ms")
    class EntropyNatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TOP_GENOTYPES_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_NATS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMS_FIELD_NUMBER: _ClassVar[int]
    NUM_MACS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    prior_version: int
    genotype_json: str
    genotype_probability: float
    top_genotypes: _containers.RepeatedCompositeFieldContainer[ScoredGenotype]
    entropy_nats: _containers.ScalarMap[str, float]
    accuracy: float
    num_params: int
    num_macs: int
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    contributed_version: int
    fine_tuned: FineTuned
    latency_ms: float
    def __init__(self, prior_version: _Optional[int] = ..., genotype_json: _Optional[str] = ..., genotype_probability: _Optional[float] = ..., top_genotypes: _Optional[_Iterable[_Union[ScoredGenotype, _Mapping]]] = ..., entropy_nats: _Optional[_Mapping[str, float]] = ..., accuracy: _Optional[float] = ..., num_params: _Optional[int] = ..., num_macs: _Optional[int] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., contributed_version: _Optional[int] = ..., fine_tuned: _Optional[_Union[FineTuned, _Mapping]] = ..., latency_ms: _Optional[float] = ...) -> None: ...

class FineTuned(_message.Message):
    __slots__ = ("steps", "accuracy", "inductive_accuracy", "inductive_loss_nats")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    INDUCTIVE_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    INDUCTIVE_LOSS_NATS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    accuracy: float
    inductive_accuracy: float
    inductive_loss_nats: float
    def __init__(self, steps: _Optional[int] = ..., accuracy: _Optional[float] = ..., inductive_accuracy: _Optional[float] = ..., inductive_loss_nats: _Optional[float] = ...) -> None: ...

class MetaTrainResult(_message.Message):
    __slots__ = ("prior_version", "prior_sha256")
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIOR_SHA256_FIELD_NUMBER: _ClassVar[int]
    prior_version: int
    prior_sha256: str
    def __init__(self, prior_version: _Optional[int] = ..., prior_sha256: _Optional[str] = ...) -> None: ...

class EpochRecord(_message.Message):
    __slots__ = ("epoch", "lr", "train_loss_nats", "train_accuracy", "accuracy")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_NATS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lr: float
    train_loss_nats: float
    train_accuracy: float
    accuracy: float
    def __init__(self, epoch: _Optional[int] = ..., lr: _Optional[float] = ..., train_loss_nats: _Optional[float] = ..., train_accuracy: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class EvaluateResult(_message.Message):
    __slots__ = ("genotype_json", "accuracy", "accuracy_low", "accuracy_high", "num_test", "num_params", "num_macs", "epochs", "ended_by", "train_s", "learning_curve")
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_LOW_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_HIGH_FIELD_NUMBER: _ClassVar[int]
    NUM_TEST_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMS_FIELD_NUMBER: _ClassVar[int]
    NUM_MACS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    ENDED_BY_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    LEARNING_CURVE_FIELD_NUMBER: _ClassVar[int]
    genotype_json: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    num_test: int
    num_params: int
    num_macs: int
    epochs: int
    ended_by: str
    train_s: float
    learning_curve: _containers.RepeatedCompositeFieldContainer[EpochRecord]
    def __init__(self, genotype_json: _Optional[str] = ..., accuracy: _Optional[float] = ..., accuracy_low: _Optional[float] = ..., accuracy_high: _Optional[float] = ..., num_test: _Optional[int] = ..., num_params: _Optional[int] = ..., num_macs: _Optional[int] = ..., epochs: _Optional[int] = ..., ended_by: _Optional[str] = ..., train_s: _Optional[float] = ..., learning_curve: _Optional[_Iterable[_Union[EpochRecord, _Mapping]]] = ...) -> None: ...

class SweepTrial(_message.Message):
    __slots__ = ("number", "state", "values_json", "rounds", "value", "low", "high", "failure")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VALUES_JSON_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: str
    values_json: str
    rounds: int
    value: float
    low: float
    high: float
    failure: str
    def __init__(self, number: _Optional[int] = ..., state: _Optional[str] = ..., values_json: _Optional[str] = ..., rounds: _Optional[int] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., failure: _Optional[str] = ...) -> None: ...

class SweepResult(_message.Message):
    __slots__ = ("metric", "trials", "best", "best_json", "seconds")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    BEST_JSON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    metric: str
    trials: _containers.RepeatedCompositeFieldContainer[SweepTrial]
    best: int
    best_json: str
    seconds: float
    def __init__(self, metric: _Optional[str] = ..., trials: _Optional[_Iterable[_Union[SweepTrial, _Mapping]]] = ..., best: _Optional[int] = ..., best_json: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("name", "label", "probability", "probabilities")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    probability: float
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class FewShotResult(_message.Message):
    __slots__ = ("prior_version", "classes", "predictions", "num_queries", "statistics", "steps", "support_losses_nats", "genotype_json", "genotype_probability", "entropy_nats", "num_params", "has_network", "path", "seconds")
    class EntropyNatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PRIOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUERIES_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_LOSSES_NATS_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_NATS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMS_FIELD_NUMBER: _ClassVar[int]
    HAS_NETWORK_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    prior_version: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    num_queries: int
    statistics: BatchStatistics
    steps: int
    support_losses_nats: _containers.RepeatedScalarFieldContainer[float]
    genotype_json: str
    genotype_probability: float
    entropy_nats: _containers.ScalarMap[str, float]
    num_params: int
    has_network: bool
    path: str
    seconds: float
    def __init__(self, prior_version: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., num_queries: _Optional[int] = ..., statistics: _Optional[_Union[BatchStatistics, str]] = ..., steps: _Optional[int] = ..., support_losses_nats: _Optional[_Iterable[float]] = ..., genotype_json: _Optional[str] = ..., genotype_probability: _Optional[float] = ..., entropy_nats: _Optional[_Mapping[str, float]] = ..., num_params: _Optional[int] = ..., has_network: _Optional[bool] = ..., path: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total", "accuracy", "genotype_json", "metrics", "worker")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    GENOTYPE_JSON_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    accuracy: float
    genotype_json: str
    metrics: _containers.ScalarMap[str, float]
    worker: str
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., accuracy: _Optional[float] = ..., genotype_json: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., worker: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: FailureReason
    message: str
    def __init__(self, reason: _Optional[_Union[FailureReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("name", "spec", "state", "priority", "needs_gpu", "paused", "attempt", "create_time", "start_time", "end_time", "progress", "note", "failure", "adapt_result", "meta_train_result", "evaluate_result", "sweep_result", "few_shot_result", "artifacts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NEEDS_GPU_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ADAPT_RESULT_FIELD_NUMBER: _ClassVar[int]
    META_TRAIN_RESULT_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_RESULT_FIELD_NUMBER: _ClassVar[int]
    SWEEP_RESULT_FIELD_NUMBER: _ClassVar[int]
    FEW_SHOT_RESULT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: JobSpec
    state: JobState
    priority: int
    needs_gpu: bool
    paused: bool
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    progress: Progress
    note: str
    failure: Failure
    adapt_result: AdaptResult
    meta_train_result: MetaTrainResult
    evaluate_result: EvaluateResult
    sweep_result: SweepResult
    few_shot_result: FewShotResult
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., priority: _Optional[int] = ..., needs_gpu: _Optional[bool] = ..., paused: _Optional[bool] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., note: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., adapt_result: _Optional[_Union[AdaptResult, _Mapping]] = ..., meta_train_result: _Optional[_Union[MetaTrainResult, _Mapping]] = ..., evaluate_result: _Optional[_Union[EvaluateResult, _Mapping]] = ..., sweep_result: _Optional[_Union[SweepResult, _Mapping]] = ..., few_shot_result: _Optional[_Union[FewShotResult, _Mapping]] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ...) -> None: ...

class CreateJobRequest(_message.Message):
    __slots__ = ("parent", "spec", "request_id", "validate_only", "priority", "needs_gpu", "queue_timeout_s", "max_attempts")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NEEDS_GPU_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    spec: JobSpec
    request_id: str
    validate_only: bool
    priority: int
    needs_gpu: bool
    queue_timeout_s: float
    max_attempts: int
    def __init__(self, parent: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ..., priority: _Optional[int] = ..., needs_gpu: _Optional[bool] = ..., queue_timeout_s: _Optional[float] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "states")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class PauseJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PauseJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResumeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("name", "resume_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    resume_token: str
    def __init__(self, name: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job", "resume_token", "state_changed", "closing")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    job: Job
    resume_token: str
    state_changed: bool
    closing: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., resume_token: _Optional[str] = ..., state_changed: _Optional[bool] = ..., closing: _Optional[bool] = ...) -> None: ...

class Prior(_message.Message):
    __slots__ = ("name", "version", "sha256", "create_time", "made_by", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MADE_BY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    sha256: str
    create_time: _timestamp_pb2.Timestamp
    made_by: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., sha256: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., made_by: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GetPriorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPriorResponse(_message.Message):
    __slots__ = ("prior",)
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    prior: Prior
    def __init__(self, prior: _Optional[_Union[Prior, _Mapping]] = ...) -> None: ...

class ListPriorsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPriorsResponse(_message.Message):
    __slots__ = ("priors", "next_page_token")
    PRIORS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    priors: _containers.RepeatedCompositeFieldContainer[Prior]
    next_page_token: str
    def __init__(self, priors: _Optional[_Iterable[_Union[Prior, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "title", "num_bytes", "suffix", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    title: str
    num_bytes: int
    suffix: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., title: _Optional[str] = ..., num_bytes: _Optional[int] = ..., suffix: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("title", "suffix", "num_bytes", "sha256")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    title: str
    suffix: str
    num_bytes: int
    sha256: str
    def __init__(self, title: _Optional[str] = ..., suffix: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadDatasetRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadDatasetResponse(_message.Message):
    __slots__ = ("dataset", "existed")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    existed: bool
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ..., existed: _Optional[bool] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DownloadArtifactRequest(_message.Message):
    __slots__ = ("job", "artifact", "offset")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job: str
    artifact: str
    offset: int
    def __init__(self, job: _Optional[str] = ..., artifact: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadArtifactResponse(_message.Message):
    __slots__ = ("artifact", "chunk")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    chunk: bytes
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Coordinator(_message.Message):
    __slots__ = ("epoch", "beats", "workers")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEATS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    beats: int
    workers: int
    def __init__(self, epoch: _Optional[int] = ..., beats: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class GetServiceStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServiceStatusResponse(_message.Message):
    __slots__ = ("time", "jobs_queued", "jobs_running", "coordinator")
    TIME_FIELD_NUMBER: _ClassVar[int]
    JOBS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    jobs_queued: int
    jobs_running: int
    coordinator: Coordinator
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., jobs_queued: _Optional[int] = ..., jobs_running: _Optional[int] = ..., coordinator: _Optional[_Union[Coordinator, _Mapping]] = ...) -> None: ...
