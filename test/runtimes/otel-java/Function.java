import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.concurrent.Executors;

/** A function on the JDK's own server that knows nothing of metrics: OpenTelemetry's agent measures it. */
public final class Function {
    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", Function::call);
        server.createContext("/healthz", he -> answer(he, 200));
        server.setExecutor(Executors.newFixedThreadPool(10));
        server.start();
    }

    private static void call(HttpExchange he) throws IOException {
        String query = he.getRequestURI().getQuery();
        query = query == null ? "" : query;
        if (query.startsWith("sleep=")) {
            try {
                Thread.sleep(Long.parseLong(query.substring("sleep=".length())));
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }
        if (query.startsWith("call=")) {
            URI uri = URI.create(query.substring("call=".length()));
            ((HttpURLConnection) uri.toURL().openConnection()).getInputStream().readAllBytes();
        }
        answer(he, query.startsWith("fail=") ? 500 : 200);
    }

    private static void answer(HttpExchange he, int status) throws IOException {
        he.getRequestBody().readAllBytes();
        he.sendResponseHeaders(status, 5);
        he.getResponseBody().write("hello".getBytes());
        he.close();
    }
}
