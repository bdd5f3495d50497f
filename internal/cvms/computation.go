package cvms

import (
	"encoding/json"
	"fmt"
)

// MaxRequest is the size in bytes beyond which a run request is refused, and the manifest that is made of it: that of any manifest.
const MaxRequest = 1 << 20

// maxItems bounds each list of a request. More datasets no manifest can have, since each has a hash of 32 numbers.
const maxItems = 4096

// A computation is Cocos' agent.Computation (wire/SPEC.md §6.4, shape 1). Names, order and omitempty make the bytes of the
// manifest, which the launch is bound to: a change here is another digest of every computation.
type computation struct {
	ID              string     `json:"id,omitempty"`
	Name            string     `json:"name,omitempty"`
	Description     string     `json:"description,omitempty"`
	Datasets        []dataset  `json:"datasets,omitempty"`
	Algorithm       *algorithm `json:"algorithm,omitempty"`
	ResultConsumers []consumer `json:"result_consumers,omitempty"`
}

type dataset struct {
	Hash       hash    `json:"hash"` // 32 numbers
	UserKey    []byte  `json:"user_key,omitempty"`
	Filename   string  `json:"filename,omitempty"`
	Source     *source `json:"source,omitempty"`
	Decompress bool    `json:"decompress,omitempty"`
	KBS        *broker `json:"kbs,omitempty"`
}

type algorithm struct {
	Hash     hash     `json:"hash"`
	UserKey  []byte   `json:"user_key,omitempty"`
	Source   *source  `json:"source,omitempty"`
	AlgoType string   `json:"algo_type,omitempty"`
	AlgoArgs []string `json:"algo_args,omitempty"`
	KBS      *broker  `json:"kbs,omitempty"`
}

type source struct {
	Type            string `json:"type,omitempty"` // Cocos' own agent drops it and guesses by the URL
	URL             string `json:"url,omitempty"`
	KBSResourcePath string `json:"kbs_resource_path,omitempty"`
	Encrypted       bool   `json:"encrypted,omitempty"`
}

type broker struct {
	URL     string `json:"url,omitempty"`
	Enabled bool   `json:"enabled,omitempty"`
}

type consumer struct {
	UserKey []byte `json:"user_key,omitempty"`
}

type hash [32]byte

// parseRequest reads a ComputationRunReq (wire/SPEC.md §6.3). Its agent_config is passed over: there is no agent to configure.
// With an error, the computation has what came before it.
func parseRequest(b []byte) (c computation, err error) {
	if len(b) > MaxRequest {
		return c, fmt.Errorf("run request: %d bytes, at most %d", len(b), MaxRequest)
	}
	if err := scan(b, c.take); err != nil {
		return c, fmt.Errorf("run request: %w", err)
	}
	return c, nil
}

// manifest is the computation as json.Marshal of Cocos' agent.Computation gives it, at most MaxRequest bytes.
func (c computation) manifest() ([]byte, error) {
	b, err := json.Marshal(c)
	if err == nil && len(b) > MaxRequest {
		err = fmt.Errorf("run request: its manifest has %d bytes, at most %d", len(b), MaxRequest)
	}
	return b, err
}

func (c *computation) take(f field) error {
	switch f.number {
	case 1:
		return f.text("id", &c.ID)
	case 2:
		return f.text("name", &c.Name)
	case 3:
		return f.text("description", &c.Description)
	case 4:
		var d dataset
		name, err := item("datasets", len(c.Datasets))
		if err == nil {
			err = d.Hash.among(f, name, d.take)
		}
		c.Datasets = append(c.Datasets, d)
		return err
	case 5:
		if c.Algorithm == nil {
			c.Algorithm = new(algorithm)
		}
		return c.Algorithm.Hash.among(f, "algorithm", c.Algorithm.take)
	case 6:
		var r consumer
		name, err := item("result_consumers", len(c.ResultConsumers))
		if err == nil {
			err = f.message(name, r.take)
		}
		c.ResultConsumers = append(c.ResultConsumers, r)
		return err
	}
	return nil
}

// item names the next item of a list that has n.
func item(list string, n int) (string, error) {
	name := fmt.Sprintf("%s[%d]", list, n)
	if n >= maxItems {
		return name, fmt.Errorf("%s: more than %d of them", name, maxItems)
	}
	return name, nil
}

// among reads a message whose field 1 is h, and must be there.
func (h *hash) among(f field, name string, take func(field) error) error {
	size := 0
	err := f.message(name, func(f field) error {
		if f.number != 1 {
			return take(f)
		}
		size = len(f.bytes)
		copy(h[:], f.bytes)
		return f.want(wireBytes, "hash")
	})
	if err == nil && size != len(h) {
		err = fmt.Errorf("%s.hash: %d bytes, want %d", name, size, len(h))
	}
	return err
}

func (d *dataset) take(f field) error {
	switch f.number {
	case 2:
		return f.blob("userKey", &d.UserKey)
	case 3:
		return f.text("filename", &d.Filename)
	case 4:
		return readSource(f, &d.Source)
	case 5:
		return f.flag("decompress", &d.Decompress)
	case 6:
		return readBroker(f, &d.KBS)
	}
	return nil
}

func (a *algorithm) take(f field) error {
	switch f.number {
	case 2:
		return f.blob("userKey", &a.UserKey)
	case 3:
		return readSource(f, &a.Source)
	case 4:
		return f.text("algo_type", &a.AlgoType)
	case 5:
		var arg string
		name, err := item("algo_args", len(a.AlgoArgs))
		if err == nil {
			err = f.text(name, &arg)
		}
		a.AlgoArgs = append(a.AlgoArgs, arg)
		return err
	case 6:
		return readBroker(f, &a.KBS)
	}
	return nil
}

func (r *consumer) take(f field) error {
	if f.number != 1 {
		return nil
	}
	return f.blob("userKey", &r.UserKey)
}

func readSource(f field, to **source) error {
	if *to == nil {
		*to = new(source)
	}
	s := *to
	return f.message("source", func(f field) error {
		switch f.number {
		case 1:
			return f.text("type", &s.Type)
		case 2:
			return f.text("url", &s.URL)
		case 3:
			return f.text("kbs_resource_path", &s.KBSResourcePath)
		case 4:
			return f.flag("encrypted", &s.Encrypted)
		}
		return nil
	})
}

func readBroker(f field, to **broker) error {
	if *to == nil {
		*to = new(broker)
	}
	b := *to
	return f.message("kbs", func(f field) error {
		switch f.number {
		case 1:
			return f.text("url", &b.URL)
		case 2:
			return f.flag("enabled", &b.Enabled)
		}
		return nil
	})
}
