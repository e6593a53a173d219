package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// upload is a multipart upload that is neither completed nor aborted.
type upload struct {
	bucket, key string
	parts       map[int][]byte
}

// upload answers requests with ?uploads or ?uploadId about an object.
func (s *store) upload(w http.ResponseWriter, r *http.Request, bucket, key string) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // the client went away
		return
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	id := r.URL.Query().Get("uploadId")
	found := s.uploads[id]
	switch {
	case r.Method == http.MethodPost && id == "":
		s.create(w, bucket, key)
	case found == nil || found.bucket != bucket || found.key != key:
		fail(w, http.StatusNotFound)
	case r.Method == http.MethodPut:
		addPart(w, r, found, body)
	case r.Method == http.MethodPost:
		s.complete(w, r, id, body)
	case r.Method == http.MethodDelete:
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	default:
		fail(w, http.StatusMethodNotAllowed)
	}
}

func (s *store) create(w http.ResponseWriter, bucket, key string) {
	s.made++
	id := strconv.Itoa(s.made)
	s.uploads[id] = &upload{bucket: bucket, key: key, parts: map[int][]byte{}}
	reply(w, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket   string
		Key      string
		UploadID string `xml:"UploadId"`
	}{Bucket: bucket, Key: key, UploadID: id})
}

func addPart(w http.ResponseWriter, r *http.Request, to *upload, body []byte) {
	number, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
	if err != nil || number < 1 {
		fail(w, http.StatusBadRequest)
		return
	}
	to.parts[number] = body
	w.Header().Set("ETag", fmt.Sprintf(`"part-%d"`, number))
}

// complete joins the parts that the client names.
func (s *store) complete(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	var wanted struct {
		Part []struct{ PartNumber int }
	}
	if err := xml.Unmarshal(body, &wanted); err != nil {
		fail(w, http.StatusBadRequest)
		return
	}
	from := s.uploads[id]
	var whole []byte
	for _, part := range wanted.Part {
		found, isThere := from.parts[part.PartNumber]
		if !isThere {
			fail(w, http.StatusBadRequest)
			return
		}
		whole = append(whole, found...)
	}
	written, isWritten := s.write(w, r, from.bucket, from.key, whole)
	if !isWritten {
		return
	}
	delete(s.uploads, id)
	reply(w, struct {
		XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket  string
		Key     string
		ETag    string
	}{Bucket: from.bucket, Key: from.key, ETag: quoted(written.Etag)})
}

func (s *store) listUploads(w http.ResponseWriter, bucket string) {
	type open struct {
		Key      string
		UploadID string `xml:"UploadId"`
	}
	var found []open
	s.lock.Lock()
	defer s.lock.Unlock()
	for id, one := range s.uploads {
		if one.bucket == bucket {
			found = append(found, open{one.key, id})
		}
	}
	reply(w, struct {
		XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		Upload  []open
	}{Upload: found})
}
