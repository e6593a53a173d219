// Command gcs-server is fake-gcs-server with what clients that speak Cloud Storage's
// XML API need besides: puts, multipart uploads and listings of several pages.
package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	address := flag.String("address", "127.0.0.1:4443", "host and port to listen on")
	folder := flag.String("folder", "", "where objects are kept; in memory without")
	flag.Parse()
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		NoListener:  true,
		StorageRoot: *folder,
		PublicHost:  *address,
		ExternalURL: "http://" + *address,
	})
	if err != nil {
		log.Fatal(err)
	}
	inner := server.HTTPHandler()
	store := &store{inner: inner, address: *address, uploads: map[string]*upload{}}
	log.Fatal(http.ListenAndServe(*address, store))
}

type store struct {
	inner   http.Handler
	address string
	lock    sync.Mutex
	uploads map[string]*upload
	made    int
}

// ServeHTTP answers what the inner server does not know, and passes on the rest.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bucket, key, isXML := place(r)
	query := r.URL.Query()
	switch {
	case !isXML:
		s.inner.ServeHTTP(w, r)
	case key == "" && r.Method == http.MethodGet && query.Has("uploads"):
		s.listUploads(w, bucket)
	case key == "" && r.Method == http.MethodGet:
		s.list(w, bucket, query)
	case query.Has("uploads") || query.Has("uploadId"):
		s.upload(w, r, bucket, key)
	case r.Method == http.MethodPut:
		s.put(w, r, bucket, key)
	default:
		r.Host = s.address // the inner server knows objects by this name alone
		s.inner.ServeHTTP(w, r)
	}
}

// place splits a path of the XML API, /BUCKET or /BUCKET/KEY.
func place(r *http.Request) (bucket, key string, isXML bool) {
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	bucket, key, _ = strings.Cut(path, "/")
	switch bucket {
	case "storage", "upload", "download", "batch", "_internal":
		return "", "", false
	}
	if unescaped, err := url.PathUnescape(key); err == nil {
		key = unescaped
	}
	return bucket, key, true
}

// ask sends a request of the JSON API to the inner server.
func (s *store) ask(
	method, path string, query url.Values, body []byte,
) *httptest.ResponseRecorder {
	target := path + "?" + query.Encode()
	request := httptest.NewRequest(method, target, bytes.NewReader(body))
	request.Host = s.address
	answer := httptest.NewRecorder()
	s.inner.ServeHTTP(answer, request)
	return answer
}

type object struct {
	Name, Size, Updated, Etag, Generation string
}

// write keeps a whole object and sets the headers of an answer; where the store
// refuses, it answers and returns false.
func (s *store) write(
	w http.ResponseWriter, r *http.Request, bucket, key string, body []byte,
) (written object, isWritten bool) {
	query := url.Values{"uploadType": {"media"}, "name": {key}}
	if generation := r.Header.Get("x-goog-if-generation-match"); generation != "" {
		query.Set("ifGenerationMatch", generation)
	}
	answer := s.ask(http.MethodPost, "/upload/storage/v1/b/"+bucket+"/o", query, body)
	if answer.Code != http.StatusOK {
		fail(w, answer.Code)
		return written, false
	}
	parse(answer, &written)
	w.Header().Set("ETag", quoted(written.Etag))
	w.Header().Set("x-goog-generation", written.Generation)
	return written, true
}

func (s *store) put(w http.ResponseWriter, r *http.Request, bucket, key string) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // the client went away
		return
	}
	s.write(w, r, bucket, key, body)
}

type contents struct {
	Key, Size, LastModified, ETag, Generation string
}

type commonPrefix struct {
	Prefix string
}

type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name                  string
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	Contents              []contents
	CommonPrefixes        []commonPrefix
}

// Parameters of a listing: XML API to JSON API.
var parameters = map[string]string{
	"prefix": "prefix", "delimiter": "delimiter", "max-keys": "maxResults",
	"continuation-token": "pageToken",
}

func (s *store) list(w http.ResponseWriter, bucket string, query url.Values) {
	asked := url.Values{"maxResults": {"1000"}}
	for from, to := range parameters {
		if query.Get(from) != "" {
			asked.Set(to, query.Get(from))
		}
	}
	if after := query.Get("start-after"); after != "" {
		asked.Set("startOffset", after+"\x00") // which itself would be listed
	}
	answer := s.ask(http.MethodGet, "/storage/v1/b/"+bucket+"/o", asked, nil)
	if answer.Code != http.StatusOK {
		fail(w, answer.Code)
		return
	}
	var page struct {
		Items         []object
		Prefixes      []string
		NextPageToken string
	}
	parse(answer, &page)
	found := listing{Name: bucket, NextContinuationToken: page.NextPageToken}
	found.IsTruncated = page.NextPageToken != ""
	for _, one := range page.Items {
		entry := contents{one.Name, one.Size, one.Updated, quoted(one.Etag), one.Generation}
		found.Contents = append(found.Contents, entry)
	}
	for _, prefix := range page.Prefixes {
		found.CommonPrefixes = append(found.CommonPrefixes, commonPrefix{prefix})
	}
	reply(w, found)
}

func quoted(etag string) string {
	return `"` + strings.Trim(etag, `"`) + `"`
}

func parse(answer *httptest.ResponseRecorder, into any) {
	if err := json.Unmarshal(answer.Body.Bytes(), into); err != nil {
		log.Panic(err)
	}
}

func reply(w http.ResponseWriter, document any) {
	body, err := xml.Marshal(document)
	if err != nil {
		log.Panic(err)
	}
	_, _ = w.Write(append([]byte(xml.Header), body...))
}

func fail(w http.ResponseWriter, status int) {
	code := map[int]string{
		http.StatusNotFound:           "NoSuchBucket",
		http.StatusPreconditionFailed: "PreconditionFailed",
	}[status]
	w.WriteHeader(status)
	reply(w, struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: code, Message: fmt.Sprintf("status %d", status)})
}
