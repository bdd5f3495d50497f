package cvmstest

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// A Job is a computation of an algorithm, the entrypoint of an encrypted image, and a dataset, an encrypted image of one file.
type Job struct {
	ID                      string
	Algorithm, AlgorithmKey string // reference, and path of its key
	Dataset, DatasetKey     string
	Filename                string
	Broker                  string
	Arg                     string
	Consumer                []byte // PKIX DER of the key that the result is sealed to; nil: none, in a Request only
}

// Request is the ComputationRunReq, for Stream.Request, with an agent_config as Cocos' server has it. Its hashes are of nothing.
func (j Job) Request() string {
	zeros, key := base64.StdEncoding.EncodeToString(make([]byte, 32)), base64.StdEncoding.EncodeToString(j.Consumer)
	resource := func(uri, path string) string {
		return fmt.Sprintf(`"hash": %q, "userKey": %q, "source": {"type": "oci-image", "url": %q, "kbs_resource_path": %q, "encrypted": true}, "kbs": {"url": %q, "enabled": true}`,
			zeros, key, uri, path, j.Broker)
	}
	consumers := ""
	if j.Consumer != nil {
		consumers = fmt.Sprintf(`{"userKey": %q}`, key)
	}
	return fmt.Sprintf(`{"id": %q, "name": "sample computation", "algorithm": {%s, "algo_type": "docker", "algo_args": [%q]}, "datasets": [{%s, "filename": %q}],
		"result_consumers": [%s], "agent_config": {"port": "7002", "attested_tls": true}}`,
		j.ID, resource(j.Algorithm, j.AlgorithmKey), j.Arg, resource(j.Dataset, j.DatasetKey), j.Filename, consumers)
}

// Manifest is what the owner of a key computes the digest of: the JSON of agent.Computation (wire/SPEC.md §6.4).
func (j Job) Manifest() []byte {
	zeros, key := "[0"+strings.Repeat(",0", 31)+"]", base64.StdEncoding.EncodeToString(j.Consumer)
	source := func(uri, path string) string {
		return fmt.Sprintf(`"source":{"type":"oci-image","url":%q,"kbs_resource_path":%q,"encrypted":true}`, uri, path)
	}
	kbs := fmt.Sprintf(`"kbs":{"url":%q,"enabled":true}`, j.Broker)
	return fmt.Appendf(nil, `{"id":%q,"name":"sample computation","datasets":[{"hash":%s,"user_key":%q,"filename":%q,%s,%s}],`+
		`"algorithm":{"hash":%s,"user_key":%q,%s,"algo_type":"docker","algo_args":[%q],%s},"result_consumers":[{"user_key":%q}]}`,
		j.ID, zeros, key, j.Filename, source(j.Dataset, j.DatasetKey), kbs, zeros, key, source(j.Algorithm, j.AlgorithmKey), j.Arg, kbs, key)
}
