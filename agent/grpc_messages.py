"""The messages of Open Inference Protocol v2 over gRPC, and of ``grpc.health.v1``, as classes of their own.

Names, types and numbers are the public protocol's: Triton's ``grpc_service.proto`` and ``model_config.proto`` with the
one field that the Open Inference Protocol has more, ``ModelMetadataResponse.properties``. Of a model's configuration
only what is told here is declared; what a peer sends beyond it is kept as unknown, as protobuf demands.

The classes live in a descriptor pool of their own. Generated modules register themselves in the process-wide pool,
where a second definition of ``inference.*`` is an error; so a program that embeds this server may use
``tritonclient.grpc`` as well.

Knows nothing of servers, models or tensors.
"""

from __future__ import annotations

from typing import Any

from agent.grpc_descriptors import Enums, Fields, choice, classes, keyed, many, one

_NAMED: Fields = {"name": one(1, "string")}
_MODEL: Fields = {"name": one(1, "string"), "version": one(2, "string")}
_DURATION = "StatisticDuration"

_ENUMS: Enums = {
    "DataType": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8"),
        *("TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ),
    "ModelInput.Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
}

_MESSAGES: dict[str, Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": one(1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": one(1, "bool")},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": one(1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": one(1, "string"),
        "version": one(2, "string"),
        "extensions": many(3, "string"),
    },
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": {
        "name": one(1, "string"),
        "versions": many(2, "string"),
        "platform": one(3, "string"),
        "inputs": many(4, "ModelMetadataResponse.TensorMetadata"),
        "outputs": many(5, "ModelMetadataResponse.TensorMetadata"),
        "properties": keyed(6, "string"),
    },
    "ModelMetadataResponse.TensorMetadata": {
        "name": one(1, "string"),
        "datatype": one(2, "string"),
        "shape": many(3, "int64"),
    },
    "InferParameter": {
        "bool_param": choice(1, "bool"),
        "int64_param": choice(2, "int64"),
        "string_param": choice(3, "string"),
        "double_param": choice(4, "double"),
        "uint64_param": choice(5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": many(1, "bool"),
        "int_contents": many(2, "int32"),
        "int64_contents": many(3, "int64"),
        "uint_contents": many(4, "uint32"),
        "uint64_contents": many(5, "uint64"),
        "fp32_contents": many(6, "float"),
        "fp64_contents": many(7, "double"),
        "bytes_contents": many(8, "bytes"),
    },
    "ModelInferRequest": {
        "model_name": one(1, "string"),
        "model_version": one(2, "string"),
        "id": one(3, "string"),
        "parameters": keyed(4, "InferParameter"),
        "inputs": many(5, "ModelInferRequest.InferInputTensor"),
        "outputs": many(6, "ModelInferRequest.InferRequestedOutputTensor"),
        "raw_input_contents": many(7, "bytes"),
    },
    "ModelInferRequest.InferInputTensor": {
        "name": one(1, "string"),
        "datatype": one(2, "string"),
        "shape": many(3, "int64"),
        "parameters": keyed(4, "InferParameter"),
        "contents": one(5, "InferTensorContents"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {
        "name": one(1, "string"),
        "parameters": keyed(2, "InferParameter"),
    },
    "ModelInferResponse": {
        "model_name": one(1, "string"),
        "model_version": one(2, "string"),
        "id": one(3, "string"),
        "parameters": keyed(4, "InferParameter"),
        "outputs": many(5, "ModelInferResponse.InferOutputTensor"),
        "raw_output_contents": many(6, "bytes"),
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": one(1, "string"),
        "datatype": one(2, "string"),
        "shape": many(3, "int64"),
        "parameters": keyed(4, "InferParameter"),
        "contents": one(5, "InferTensorContents"),
    },
    "ModelStreamInferResponse": {
        "error_message": one(1, "string"),
        "infer_response": one(2, "ModelInferResponse"),
    },
    "ModelConfigRequest": _MODEL,
    "ModelConfigResponse": {"config": one(1, "ModelConfig")},
    "ModelConfig": {
        "name": one(1, "string"),
        "platform": one(2, "string"),
        "version_policy": one(3, "ModelVersionPolicy"),
        "max_batch_size": one(4, "int32"),
        "input": many(5, "ModelInput"),
        "output": many(6, "ModelOutput"),
        "parameters": keyed(14, "ModelParameter"),
        "backend": one(17, "string"),
    },
    "ModelVersionPolicy": {"all": choice(2, "ModelVersionPolicy.All", "policy_choice")},
    "ModelVersionPolicy.All": {},
    "ModelInput": {
        "name": one(1, "string"),
        "data_type": one(2, "DataType"),
        "format": one(3, "ModelInput.Format"),
        "dims": many(4, "int64"),
    },
    "ModelOutput": {
        "name": one(1, "string"),
        "data_type": one(2, "DataType"),
        "dims": many(3, "int64"),
        "label_filename": one(4, "string"),
    },
    "ModelParameter": {"string_value": one(1, "string")},
    "ModelStatisticsRequest": _MODEL,
    "ModelStatisticsResponse": {"model_stats": many(1, "ModelStatistics")},
    "StatisticDuration": {"count": one(1, "uint64"), "ns": one(2, "uint64")},
    "InferStatistics": {
        "success": one(1, _DURATION),
        "fail": one(2, _DURATION),
        "queue": one(3, _DURATION),
        "compute_input": one(4, _DURATION),
        "compute_infer": one(5, _DURATION),
        "compute_output": one(6, _DURATION),
        "cache_hit": one(7, _DURATION),
        "cache_miss": one(8, _DURATION),
    },
    "InferResponseStatistics": {
        "compute_infer": one(1, _DURATION),
        "compute_output": one(2, _DURATION),
        "success": one(3, _DURATION),
        "fail": one(4, _DURATION),
        "empty_response": one(5, _DURATION),
        "cancel": one(6, _DURATION),
    },
    "InferBatchStatistics": {
        "batch_size": one(1, "uint64"),
        "compute_input": one(2, _DURATION),
        "compute_infer": one(3, _DURATION),
        "compute_output": one(4, _DURATION),
    },
    "MemoryUsage": {"type": one(1, "string"), "id": one(2, "int64"), "byte_size": one(3, "uint64")},
    "ModelStatistics": {
        "name": one(1, "string"),
        "version": one(2, "string"),
        "last_inference": one(3, "uint64"),
        "inference_count": one(4, "uint64"),
        "execution_count": one(5, "uint64"),
        "inference_stats": one(6, "InferStatistics"),
        "batch_stats": many(7, "InferBatchStatistics"),
        "memory_usage": many(8, "MemoryUsage"),
        "response_stats": keyed(9, "InferResponseStatistics"),
    },
    "ModelRepositoryParameter": {
        "bool_param": choice(1, "bool"),
        "int64_param": choice(2, "int64"),
        "string_param": choice(3, "string"),
        "bytes_param": choice(4, "bytes"),
    },
    "RepositoryIndexRequest": {"repository_name": one(1, "string"), "ready": one(2, "bool")},
    "RepositoryIndexResponse": {"models": many(1, "RepositoryIndexResponse.ModelIndex")},
    "RepositoryIndexResponse.ModelIndex": {
        **_MODEL,
        "state": one(3, "string"),
        "reason": one(4, "string"),
    },
    "RepositoryModelLoadRequest": {
        "repository_name": one(1, "string"),
        "model_name": one(2, "string"),
        "parameters": keyed(3, "ModelRepositoryParameter"),
    },
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {
        "repository_name": one(1, "string"),
        "model_name": one(2, "string"),
        "parameters": keyed(3, "ModelRepositoryParameter"),
    },
    "RepositoryModelUnloadResponse": {},
    "SystemSharedMemoryStatusRequest": _NAMED,
    "SystemSharedMemoryStatusResponse": {"regions": keyed(1, "SystemSharedMemoryStatusResponse.RegionStatus")},
    "SystemSharedMemoryStatusResponse.RegionStatus": {
        "name": one(1, "string"),
        "key": one(2, "string"),
        "offset": one(3, "uint64"),
        "byte_size": one(4, "uint64"),
    },
    "SystemSharedMemoryRegisterRequest": {
        "name": one(1, "string"),
        "key": one(2, "string"),
        "offset": one(3, "uint64"),
        "byte_size": one(4, "uint64"),
    },
    "SystemSharedMemoryRegisterResponse": {},
    "SystemSharedMemoryUnregisterRequest": _NAMED,
    "SystemSharedMemoryUnregisterResponse": {},
    "CudaSharedMemoryStatusRequest": _NAMED,
    "CudaSharedMemoryStatusResponse": {"regions": keyed(1, "CudaSharedMemoryStatusResponse.RegionStatus")},
    "CudaSharedMemoryStatusResponse.RegionStatus": {
        "name": one(1, "string"),
        "device_id": one(2, "uint64"),
        "byte_size": one(3, "uint64"),
    },
    "CudaSharedMemoryRegisterRequest": {
        "name": one(1, "string"),
        "raw_handle": one(2, "bytes"),
        "device_id": one(3, "int64"),
        "byte_size": one(4, "uint64"),
    },
    "CudaSharedMemoryRegisterResponse": {},
    "CudaSharedMemoryUnregisterRequest": _NAMED,
    "CudaSharedMemoryUnregisterResponse": {},
}

_HEALTH_ENUMS: Enums = {
    "HealthCheckResponse.ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"),
}
_HEALTH_MESSAGES: dict[str, Fields] = {
    "HealthCheckRequest": {"service": one(1, "string")},
    "HealthCheckResponse": {"status": one(1, "HealthCheckResponse.ServingStatus")},
}


INFERENCE: dict[str, Any] = classes("inference", _MESSAGES, _ENUMS)
"""Message classes by name within package ``inference``; a nested one as ``Outer.Inner``."""

HEALTH: dict[str, Any] = classes("grpc.health.v1", _HEALTH_MESSAGES, _HEALTH_ENUMS)
"""Message classes by name within package ``grpc.health.v1``."""
