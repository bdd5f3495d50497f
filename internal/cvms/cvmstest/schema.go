package cvmstest

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// schema is wire/SPEC.md §6.3: fields are numbered from 1 in their order. A type with a star is a list; a "|" before the fields makes
// them one oneof.
var schema = map[string]string{
	"ClientStreamMessage": "| AgentLog agent_log, AgentEvent agent_event, RunResponse run_res, StopComputationResponse stopComputationRes, " +
		"AgentStateRes agentStateRes, AttestationResponse vTPMattestationReport, AttestationResponse azureAttestationToken",
	"ServerStreamMessage":     "| RunReqChunks runReqChunks, ComputationRunReq runReq, StopComputation stopComputation, AgentStateReq agentStateReq, DisconnectReq disconnectReq",
	"AgentLog":                "string message, string computation_id, string level, Timestamp timestamp",
	"AgentEvent":              "string event_type, Timestamp timestamp, string computation_id, bytes details, string originator, string status",
	"RunResponse":             "string computation_id, string error",
	"StopComputationResponse": "string computation_id, string message",
	"AgentStateRes":           "string id, string state",
	"AttestationResponse":     "bytes file, string certSerialNumber",
	"RunReqChunks":            "bytes data, string id, bool is_last",
	"StopComputation":         "string computation_id",
	"AgentStateReq":           "string id",
	"DisconnectReq":           "string id",
	"ComputationRunReq": "string id, string name, string description, Dataset* datasets, Algorithm algorithm, ResultConsumer* result_consumers, " +
		"AgentConfig agent_config",
	"Dataset":        "bytes hash, bytes userKey, string filename, Source source, bool decompress, KBSConfig kbs",
	"Algorithm":      "bytes hash, bytes userKey, Source source, string algo_type, string* algo_args, KBSConfig kbs",
	"ResultConsumer": "bytes userKey",
	"Source":         "string type, string url, string kbs_resource_path, bool encrypted",
	"KBSConfig":      "string url, bool enabled",
	"AgentConfig":    "string port, string cert_file, string key_file, string client_ca_file, string server_ca_file, string log_level, bool attested_tls",
	"Timestamp":      "int64 seconds, int32 nanos", // as google.protobuf.Timestamp
}

var scalars = map[string]descriptorpb.FieldDescriptorProto_Type{
	"string": descriptorpb.FieldDescriptorProto_TYPE_STRING, "bytes": descriptorpb.FieldDescriptorProto_TYPE_BYTES, "bool": descriptorpb.FieldDescriptorProto_TYPE_BOOL,
	"int32": descriptorpb.FieldDescriptorProto_TYPE_INT32, "int64": descriptorpb.FieldDescriptorProto_TYPE_INT64,
}

var file = sync.OnceValue(func() protoreflect.FileDescriptor {
	f := &descriptorpb.FileDescriptorProto{Name: proto.String("cvms.proto"), Package: proto.String("cvms"), Syntax: proto.String("proto3")}
	for name, fields := range schema {
		m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		fields, one := strings.CutPrefix(fields, "| ")
		if one {
			m.OneofDecl = []*descriptorpb.OneofDescriptorProto{{Name: proto.String("message")}}
		}
		for i, field := range strings.Split(fields, ", ") {
			kind, name, _ := strings.Cut(field, " ")
			kind, list := strings.CutSuffix(kind, "*")
			d := &descriptorpb.FieldDescriptorProto{Name: proto.String(name), Number: proto.Int32(int32(i + 1)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
			if list {
				d.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
			}
			if one {
				d.OneofIndex = proto.Int32(0)
			}
			if t, ok := scalars[kind]; ok {
				d.Type = t.Enum()
			} else {
				d.Type, d.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String(".cvms."+kind)
			}
			m.Field = append(m.Field, d)
		}
		f.MessageType = append(f.MessageType, m)
	}
	d, err := protodesc.NewFile(f, nil)
	if err != nil {
		panic(err)
	}
	return d
})

func descriptor(kind string) protoreflect.MessageDescriptor {
	return file().Messages().ByName(protoreflect.Name(kind))
}
