package sink

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const (
	blobType  = "X-Ms-Blob-Type"
	blockBlob = "BlockBlob"

	azureBlock  = 8 << 20 // bytes of a block, unless there would be more of them than Azure takes
	azureBlocks = 50_000
)

// isAzure reports whether a URL is of Azure's blob store, in any of its clouds.
func isAzure(u *url.URL) bool {
	return strings.Contains("."+strings.ToLower(u.Hostname()), ".blob.core.")
}

// putAzure writes a block blob (learn.microsoft.com/rest/api/storageservices/put-block): a small one whole, any other as blocks,
// each of which is sent anew by itself, and a list of them at the end, which makes the blob. The URL has a SAS that permits to write.
func putAzure(ctx context.Context, s *store, r Result) error {
	if r.Size <= azureBlock {
		h := s.headers.Clone()
		h.Set(blobType, blockBlob)
		return s.put(ctx, request{http.MethodPut, s.url, h, r, 0, r.Size})
	}
	block := max(azureBlock, (r.Size+azureBlocks-1)/azureBlocks)
	var list strings.Builder
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for from := int64(0); from < r.Size; from += block {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", from/block)) // all of one length
		at := with(s.url, "comp=block&blockid="+url.QueryEscape(id))
		if err := s.put(ctx, request{http.MethodPut, at, nil, r, from, min(block, r.Size-from)}); err != nil {
			return fmt.Errorf("block %d: %w", from/block, err)
		}
		fmt.Fprintf(&list, "<Latest>%s</Latest>", id)
	}
	list.WriteString("</BlockList>")
	text := list.String()
	return s.put(ctx, request{http.MethodPut, with(s.url, "comp=blocklist"), s.headers, strings.NewReader(text), 0, int64(len(text))})
}

// with adds to the query of a signed URL, and leaves what is signed as it is.
func with(u *url.URL, query string) *url.URL {
	v := *u
	if v.RawQuery != "" {
		query = v.RawQuery + "&" + query
	}
	v.RawQuery = query
	return &v
}
