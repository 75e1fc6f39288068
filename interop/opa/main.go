// The engine of Open Policy Agent behind Envoy's protocol of external authorization: policies see requests, and say what becomes of
// them, as those of opa-envoy-plugin do (`input.attributes.request.http`, `input.parsed_path`; `allowed`, `http_status`, `headers`, `body`).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	types "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/rego"
	status "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
)

type server struct {
	auth.UnimplementedAuthorizationServer
	query rego.PreparedEvalQuery
}

// What a policy says of a request.
type verdict struct {
	Allowed bool              `json:"allowed"`
	Status  int32             `json:"http_status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

func (s *server) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	asked, err := input(request)
	if err != nil {
		return nil, err
	}
	results, err := s.query.Eval(ctx, rego.EvalInput(asked))
	if err != nil {
		return nil, err
	}
	// What a policy says nothing of has no answer, which is for the mesh to decide on.
	if len(results) != 1 {
		return nil, fmt.Errorf("the policy says nothing of the request")
	}
	text, err := json.Marshal(results[0].Expressions[0].Value)
	if err != nil {
		return nil, err
	}
	var said verdict
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, err
	}
	return said.answer(), nil
}

// A request, as policies see it.
func input(request *auth.CheckRequest) (map[string]any, error) {
	text, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	var asked map[string]any
	if err := json.Unmarshal(text, &asked); err != nil {
		return nil, err
	}
	path, _, _ := strings.Cut(request.GetAttributes().GetRequest().GetHttp().GetPath(), "?")
	asked["parsed_path"] = strings.Split(strings.TrimPrefix(path, "/"), "/")
	return asked, nil
}

func (said verdict) answer() *auth.CheckResponse {
	var headers []*core.HeaderValueOption
	for key, value := range said.Headers {
		headers = append(headers, &core.HeaderValueOption{Header: &core.HeaderValue{Key: key, Value: value}})
	}
	if said.Allowed {
		return &auth.CheckResponse{
			Status:       &status.Status{Code: int32(codes.OK)},
			HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{Headers: headers}},
		}
	}
	code := types.StatusCode_Forbidden
	if said.Status != 0 {
		code = types.StatusCode(said.Status)
	}
	denied := &auth.DeniedHttpResponse{Status: &types.HttpStatus{Code: code}, Headers: headers, Body: said.Body}
	return &auth.CheckResponse{
		Status:       &status.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: denied},
	}
}

// opa POLICY.rego HOST:PORT
func main() {
	policy, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	options := []func(*rego.Rego){rego.Query("data.envoy.authz.allow"), rego.Module(os.Args[1], string(policy))}
	query, err := rego.New(options...).PrepareForEval(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	served := grpc.NewServer()
	auth.RegisterAuthorizationServer(served, &server{query: query})
	fmt.Printf("asked at %s\n", listener.Addr())
	log.Fatal(served.Serve(listener))
}
